"""The distribution: one wheel, two import names, with its data; built with and without a compiler, never with torch."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KEPT = {"CXX": f"{sys.executable} {ROOT / 'csrc' / 'compile_once.py'} {os.environ.get('CXX', 'c++')}"}
"""Objects that `make install` or a build before compiled from the same text are taken as they are."""
pytestmark = pytest.mark.slow


def build(folder: Path, **environment: str) -> Path:
    """The wheel of a copy of the sources, so that nothing built before is in it."""
    source = folder / "source"
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in names:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode and "No matching distribution" in done.stderr and not os.environ.get("CI"):
        pytest.skip("there is no package index to take setuptools and pybind11 from")
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"), **KEPT)


def run_installed(wheel: Path, code: str) -> str:
    """The output of `code` with the unpacked wheel first on the path; -P keeps the working folder out."""
    site = wheel.parent / "site"
    zipfile.ZipFile(wheel).extractall(site)
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_both_names_come_from_the_wheel_with_types_data_and_kernels(wheel):
    code = "import rlhf_fast, rlhf_kernels, rlhf_kernels._native as n; print(rlhf_fast.__file__, n.__file__)"
    assert run_installed(wheel, code).count(str(wheel.parent / "site")) == 2
    names = zipfile.ZipFile(wheel).namelist()
    data = ("demo/data/customer_service.jsonl", "annotate/templates/compare.html", "annotate/static/compare.js")
    for name in ("rlhf_fast/py.typed", "rlhf_kernels/py.typed", *(f"rlhf_fast/{one}" for one in data)):
        assert name in names
    for source in (ROOT / "csrc/cuda").iterdir():  # nvcc compiles them on first use
        assert f"rlhf_kernels/csrc/cuda/{source.name}" in names
    assert not any(name.startswith(("tests", "kernels/", "csrc")) for name in names)


def test_the_cuda_sources_are_found_in_the_wheel(wheel):
    code = "from rlhf_kernels import cuda_support as c; print(*((c.sources() / name).is_file() for name in c.SOURCES))"
    assert run_installed(wheel, code).split() == ["True", "True"]


def test_the_command_line_of_the_wheel_starts(wheel):
    assert "rlhf-fast VERB" in run_installed(wheel, "import rlhf_fast.cli as c; c.main(['--help'])")


def test_the_source_distribution_holds_what_tests_and_the_build_need(wheel, tmp_path):
    source = wheel.parent / "source"
    command = [sys.executable, "-m", "build", "--sdist", "--outdir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    needed = [name for name in tracked if name.startswith(("rlhf_fast/", "kernels/", "csrc/", "tests/", "benchmarks/"))]
    assert not [name for name in [*needed, "constraints.txt", "Makefile", "LICENSE"] if name not in held]


def test_without_a_compiler_the_wheel_is_built_all_the_same(tmp_path):
    wheel = build(tmp_path, CC="/bin/false", CXX="/bin/false")
    assert not any("_native" in name and name.endswith(".so") for name in zipfile.ZipFile(wheel).namelist())
    code = (
        "import torch, rlhf_kernels as k; r = torch.tensor([1.0, 1.0]); "
        "k.gae_(r, torch.zeros(2), torch.tensor([0, 2], dtype=torch.int32), gamma=1.0, lam=1.0); print(r.tolist())"
    )
    assert run_installed(wheel, code).strip() == "[2.0, 1.0]"
