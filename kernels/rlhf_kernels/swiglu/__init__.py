"""The gated unit of a SwiGLU feed-forward block (Shazeer 2020): silu(gate) * up."""

from __future__ import annotations

from torch import Tensor

from rlhf_kernels.checks import check_same_dtype, check_shape
from rlhf_kernels.swiglu import op

__all__ = ["swiglu"]


def swiglu(gate: Tensor, up: Tensor, *, backend: str | None = None) -> Tensor:
    """gate sigmoid(gate) up, entry by entry, all of one shape and dtype.

    Computed in float32 (float64 for float64) and rounded once. Both gradients come from one pass over gate, up and
    the result's gradient. Nothing is mutated. `backend` is "native" (C++, CPU), "triton" (CUDA; float64 not) or
    "reference"; None as everywhere.
    Raises ValueError or TypeError for shapes and dtypes that do not fit.
    """
    check_shape("up", up, tuple(gate.shape))
    check_same_dtype(gate=gate, up=up)
    return op.swiglu(gate, up, backend)
