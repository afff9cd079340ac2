"""The Triton backends beside float64: on CPU tensors where Triton's interpreter is on, else on a CUDA device.

The interpreter has to be chosen before Triton is imported, and would slow down whatever else uses Triton: so the tests
of this folder are skipped in an ordinary run without a GPU, and `tests/kernels/test_triton_interpreted.py` runs them in
a process of their own with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os

import pytest
import torch

from rlhf_kernels.triton_support import Variant

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
INTERPRETERS_OWN = {"UPCAST"}  # constants that are true in the interpreter only
ON_CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="no CUDA device; tests/kernels/test_triton_interpreted.py runs this in Triton's interpreter",
    ),
]


def pytest_generate_tests(metafunc):
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", ["cpu"] if INTERPRETED else [pytest.param("cuda", marks=ON_CUDA)])


@pytest.fixture(autouse=True)
def every_launch_is_a_form_that_the_gate_compiles(request, monkeypatch):
    """What runs has the types, constants and warps of an entry of VARIANTS, so `benchmarks.aot` has compiled it."""
    if "device" not in request.fixturenames:
        return
    from triton.runtime.jit import mangle_type

    from benchmarks import aot

    forms = list(aot.variants())
    launch = Variant.launch

    def checked(self, grid, **arguments):
        assert (
            self._replace(constants=self.constants | dict.fromkeys(INTERPRETERS_OWN & self.constants.keys(), False))
            in forms
        )
        assert {name: mangle_type(x) for name, x in arguments.items() if x is not None} == self.signature
        launch(self, grid, **arguments)

    monkeypatch.setattr(Variant, "launch", checked)
