"""Root-mean-square normalisation of rows (Zhang and Sennrich 2019)."""

from __future__ import annotations

from torch import Tensor

from rlhf_kernels.checks import check_same_dtype, check_shape
from rlhf_kernels.rms_norm import op

__all__ = ["rms_norm"]


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, backend: str | None = None) -> Tensor:
    """x / sqrt(mean x^2 + eps) * weight over the last dimension: x (..., K), weight (K,) -> (..., K).

    x and weight share a dtype; statistics and products are float32 (float64 for float64), and the result is rounded
    to x's dtype once. Differentiable in both; a weight that needs no gradient costs none. Nothing is mutated.
    `backend` is "native" (C++, CPU; not where the weight needs a gradient), "triton" (CUDA; float64 not, K up to 16384,
    or 8192 where the weight needs a gradient) or "reference"; None as everywhere.
    Raises ValueError or TypeError for shapes and dtypes that do not fit.
    """
    check_shape("weight", weight, (x.shape[-1],))
    check_same_dtype(x=x, weight=weight)
    return op.rms_norm(x, weight, eps, backend)[0]
