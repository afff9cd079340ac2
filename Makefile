# make install   a virtual environment in .venv with everything that tests and examples need
# make demo      SFT, a reward model and PPO on bundled data, with a report; make demo ARGS=--quick is shorter
# make test      the tests
# make lint      ruff and mypy
#
# TORCH chooses the build: the default is a CPU build by exact version on the package index of this machine, else the
# index's own. For another: make install TORCH=torch TORCH_INDEX=https://download.pytorch.org/whl/cu130

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test lint clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml setup.py constraints.txt $(wildcard csrc/*/*.* csrc/*/*/*.*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[data,demo,dev]"
	touch $@

demo: install
	$(BIN)/rlhf-fast demo $(ARGS)

test: install
	$(BIN)/python -m pytest -q

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info kernels/rlhf_kernels/*.so
