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

from rlhf_kernels.triton_support import cannot_run, interpreted

ROOT = Path(__file__).parents[2]
BACKENDS = (
    "gae", "shaping", "moments", "whiten", "ppo_loss", "logprobs", "sample", "decode_attention", "rms_norm", "rotary",
    "swiglu",
)  # fmt: skip
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
    modules = ", ".join(f"rlhf_kernels.{name}.triton" for name in BACKENDS)
    out = python("-c", f"import sys, rlhf_kernels, {modules}; assert 'triton' not in sys.modules")
    assert out.returncode == 0, out.stderr


def test_without_triton_the_reason_says_so():
    code = """
import sys, torch
sys.modules["triton"] = None
from rlhf_kernels.gae import triton
print(triton.supports({"rewards": torch.zeros(1), "values": torch.zeros(1), "bootstrap": None}))
"""
    out = python("-c", code)
    assert out.stdout.startswith("Triton is not available"), out.stderr


@needs_triton
def test_cpu_tensors_are_for_the_interpreter_only():
    assert not interpreted()
    assert "x is on cpu" in cannot_run({"x": torch.zeros(1), "ddof": 1})


@needs_triton
@pytest.mark.parametrize(
    ("module", "arguments", "reason"),
    [
        ("gae", "rewards=f64, values=f64, bootstrap=None", "rewards has dtype torch.float64"),
        ("moments", "x=torch.zeros(2, dtype=torch.int64), mask=None", "x has dtype torch.int64"),
        ("logprobs", "hidden=bf16, weight=torch.zeros(2, 2), bias=None", "got hidden torch.bfloat16, weight"),
        ("logprobs", "hidden=f64, weight=f64, bias=None", "got hidden torch.float64, weight"),
        ("logprobs", "hidden=bf16, weight=bf16, bias=f64", "bias is float64"),
        ("logprobs", "hidden=bf16, weight=torch.zeros(4, 4).bfloat16()[::2, ::2], bias=None", "neither rows nor"),
        ("swiglu", "gate=f64, up=f64", "got ['torch.float64'], and it takes bfloat16, float16 or float32"),
        ("rms_norm", "x=f64, weight=f64[0]", "got ['torch.float64'], and"),
        ("rms_norm", "x=0, weight=bf16.new_empty(16385)", "rows have 16385 entries, and it takes at most 16384"),
        (
            "rms_norm",
            "weight=bf16.new_empty(8193), weight_gradient=True",
            "rows have 8193 entries, and where the weight",
        ),
        ("rotary", "q=bf16.new_empty(1, 1, 258)", "heads have 258 entries, and it takes at most 256"),
    ],
)
def test_what_a_backend_cannot_take_has_a_reason(module, arguments, reason):
    code = f"""
import torch
from rlhf_kernels.{module} import triton
f64, bf16 = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.bfloat16)
print(triton.supports(dict({arguments})))
"""
    out = python("-c", code, TRITON_INTERPRET="1")
    assert out.stdout.startswith(reason), out.stdout + out.stderr
