"""Rotary position embedding of queries and keys (Su et al. 2021), halves of a head paired as in Llama."""

from __future__ import annotations

from torch import Tensor

from rlhf_kernels.checks import check_same_dtype, check_shape
from rlhf_kernels.rotary import op

__all__ = ["rotary"]


def rotary(
    q: Tensor,  # (T, heads, D)
    k: Tensor,  # (T, kv_heads, D)
    cos: Tensor,  # (T, D/2)
    sin: Tensor,  # (T, D/2)
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """q and k with each pair (x[d], x[d + D/2]) turned by the token's angle d: new tensors of the same shapes.

    All share a dtype; computed in float32 (float64 for float64) and rounded once. Differentiable in q and k: the
    gradient is turned back. Nothing is mutated. Views of one product are read where they lie. `backend` is "native"
    (C++, CPU), "triton" (CUDA; float64 not, D up to 256, one launch for both) or "reference"; None as everywhere.
    Raises ValueError or TypeError for shapes and dtypes that do not fit.
    """
    check_shape("k", k, (q.shape[0], k.shape[1], q.shape[2]))
    for name, angles in (("cos", cos), ("sin", sin)):
        check_shape(name, angles, (q.shape[0], q.shape[2] // 2))
    if q.shape[2] % 2:
        raise ValueError(f"the heads of q have {q.shape[2]} entries, expected an even number to pair them")
    check_same_dtype(q=q, k=k, cos=cos, sin=sin)
    return op.rotary(q, k, cos.detach(), sin.detach(), False, backend)
