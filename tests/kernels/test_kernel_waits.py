"""The host code of the GPU backends leaves the device alone: what comes between the launches, without the launches."""

from __future__ import annotations

import importlib.util

import pytest

from rlhf_kernels.op import OPS
from tests.kernels.test_ops import SAMPLES
from tests.waits import Waits

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from rlhf_kernels.triton_support import Variant

ON_CUDA = ("triton", "cuda", "reference")
CASES = [
    (name, backend, i)
    for name, samples in SAMPLES.items()
    for backend in (OPS[name].backends if name != "packed_attention" else ())
    if backend in ("triton", "cuda") or (backend == "reference" and name.startswith("lora_linear"))
    for i in range(len(samples))
]


@pytest.fixture(autouse=True)
def nothing_is_launched(monkeypatch):
    monkeypatch.setattr(Variant, "launch", lambda *_, **__: None)
    monkeypatch.setattr("rlhf_kernels.logprobs.cuda.call", lambda *_: None)
    monkeypatch.setattr("rlhf_kernels.gae_cuda.call", lambda *_: None)


@pytest.mark.parametrize("name, backend, i", CASES)
def test_a_backend_waits_for_nothing_but_for_rows_that_nobody_has_counted(name, backend, i):
    a = OPS[name].arguments(*(x.detach() if hasattr(x, "detach") else x for x in SAMPLES[name][i]))
    with Waits(in_kernels=True) as waits:
        OPS[name].backends[backend].run(a)
    counted = getattr(a, "scored", 0) is not None
    assert waits.found == ([] if counted else ["aten::nonzero in reference.py:scored_rows"])
