"""Triton's backends without a GPU: their own tests in the interpreter, and what happens where Triton cannot run.

The variable that turns the interpreter on is read when Triton is imported and holds for the process; so the tests of
`tests/kernels/triton` run in one of their own, and this one goes on as if nothing had happened.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlhf_kernels.triton_support import interpreted, triton_refusal
from tests.kernels.by_backend import arguments

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def python(*arguments, **variables):
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "RLHF_FAST_BACKEND")}
    path = os.pathsep.join([str(ROOT / "kernels"), str(ROOT)])
    environment |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)


@needs_triton
@pytest.mark.slow
def test_every_kernel_agrees_with_float64_in_the_interpreter():
    out = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/triton", TRITON_INTERPRET="1")
    assert out.returncode == 0, out.stdout[-4000:] + out.stderr[-2000:]
    assert " passed" in out.stdout


def test_importing_the_kernels_imports_no_triton():
    out = python("-c", "import sys, rlhf_kernels; assert 'triton' not in sys.modules")
    assert out.returncode == 0, out.stderr


def test_without_triton_the_reason_says_so():
    code = """
import sys, torch
sys.modules["triton"] = None
from tests.kernels.by_backend import triton
print(triton.refusal("gae_", rewards=torch.zeros(1), values=torch.zeros(1)))
"""
    out = python("-c", code)
    assert out.stdout.startswith("Triton is not available"), out.stderr


@needs_triton
def test_cpu_tensors_are_for_the_interpreter_only():
    assert not interpreted()
    assert "x is on cpu" in triton_refusal(arguments("whiten_", x=torch.zeros(1), ddof=1))


REFUSED = [
    ("gae_", "rewards=f64, values=f64, bootstrap=None", "rewards has dtype torch.float64"),
    ("moments", "x=torch.zeros(2, dtype=torch.int64), mask=None", "x has dtype torch.int64"),
    ("linear_logprobs", "hidden=bf16, weight=torch.zeros(2, 2), bias=None", "got hidden torch.bfloat16, weight"),
    ("linear_logprobs", "hidden=f64, weight=f64, bias=None", "got hidden torch.float64, weight"),
    ("linear_logprobs", "hidden=bf16, weight=bf16, bias=f64", "bias is float64"),
    (
        "linear_logprobs",
        "hidden=bf16, weight=torch.zeros(4, 4).bfloat16()[::2, ::2], bias=None",
        "neither rows nor",
    ),
    ("swiglu", "gate=f64, up=f64", "got ['torch.float64'], and it takes bfloat16, float16 or float32"),
    ("rms_norm", "x=f64, weight=f64[0]", "got ['torch.float64'], and"),
    ("rms_norm", "x=bf16, weight=bf16.new_empty(16385)", "rows have 16385 entries, and it takes at most 16384 in"),
    ("rms_norm", "x=f64.float(), weight=torch.empty(8193)", "rows have 8193 entries, and it takes at most 8192 in"),
    (
        "rms_norm_backward",
        "x=bf16, weight=bf16.new_empty(8193), weight_gradient=True",
        "rows have 8193 entries, and where the weight",
    ),
    ("rotary", "q=bf16.new_empty(1, 1, 258)", "heads have 258 entries, and it takes at most 256"),
]


@pytest.fixture(scope="module")
def refusals():
    """The reasons of REFUSED in their order, from one process: the interpreter is on for all of a process."""
    code = f"""
import torch
from tests.kernels.by_backend import triton
f64, bf16 = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.bfloat16)
for op, arguments, _ in {REFUSED}:
    print(eval(f"triton.refusal({{op!r}}, {{arguments}})"))
"""
    out = python("-c", code, TRITON_INTERPRET="1")
    assert out.returncode == 0, out.stderr
    return out.stdout.splitlines()


@needs_triton
@pytest.mark.parametrize(("index", "op", "arguments", "reason"), [(i, *one) for i, one in enumerate(REFUSED)])
def test_what_a_backend_cannot_take_has_a_reason(refusals, index, op, arguments, reason):
    assert refusals[index].startswith(reason)
