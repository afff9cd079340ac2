"""The C++ kernels under the address and undefined-behaviour sanitizers, without Python or torch in the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = [sys.executable, str(ROOT / "csrc" / "compile_once.py"), "g++"]  # objects are kept from one run to the next
FLAGS = ["-std=c++17", "-O0", "-g1", "-fopenmp", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Icsrc"]
READS_BEYOND = "#include <vector>\nint main() { return std::vector<int>(3).data()[3]; }\n"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++: install it to build with sanitizers"),
]


def gcc(*arguments):
    return subprocess.run([*COMPILER, *FLAGS, *arguments], cwd=ROOT, capture_output=True, text=True)


def build(sources, program):
    """A file on each core, then the program; the first that fails, or the last."""
    objects = [program.with_name(f"{program.name}-{i}.o") for i in range(len(sources))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = list(pool.map(lambda source, out: gcc("-x", "c++", "-c", source, "-o", out), sources, objects))
    return next((one for one in compiled if one.returncode), None) or gcc(*objects, "-o", program)


def run(program):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ASAN", "UBSAN", "OMP", "LD_PRELOAD"))}
    # threads that wait leave the cores to others
    return subprocess.run([program], env=environment | {"OMP_WAIT_POLICY": "passive"}, capture_output=True, text=True)


@pytest.fixture
def sanitizers(tmp_path):
    """Skips where g++ cannot build with sanitizers; where it can, they see a read of one element too many."""
    source = tmp_path / "beyond.cpp"
    source.write_text(READS_BEYOND)
    built = build([source], tmp_path / "beyond")
    if built.returncode != 0:
        pytest.skip(f"g++ cannot build with sanitizers: {built.stderr.strip().splitlines()[-1]}")
    assert "heap-buffer-overflow" in run(tmp_path / "beyond").stderr


def test_no_kernel_reaches_beyond_its_columns_or_relies_on_undefined_behaviour(sanitizers, tmp_path):
    kernels = [path for path in ROOT.glob("csrc/**/*.c*") if path.parent.name != "bindings"]  # .cu with .cpp: on fibres
    built = build(sorted([*ROOT.glob("tests/csrc/*.cpp"), *kernels]), tmp_path / "kernels")
    assert built.returncode == 0, built.stderr
    ran = run(tmp_path / "kernels")
    assert (ran.returncode, ran.stdout) == (0, "all kernels agree\n"), ran.stderr
