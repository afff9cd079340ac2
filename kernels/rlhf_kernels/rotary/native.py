"""Rotary embedding in C++: queries and keys are read and written once."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kernels.extension import native
from rlhf_kernels.layer_native import cannot_take, compute, strided, with_contiguous_heads

supports = cannot_take


def rotary(*, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """As the reference; arguments are taken as checked and supported."""
    if cos.stride() != sin.stride() or (cos.shape[1] > 1 and cos.stride(1) != 1):
        cos, sin = cos.contiguous(), sin.contiguous()
    on, direction = compute(q), -1.0 if inverse else 1.0
    angles = cos.data_ptr(), sin.data_ptr(), cos.stride(0)
    results = []
    for x in (with_contiguous_heads(q), with_contiguous_heads(k)):
        y = torch.empty(x.shape, dtype=x.dtype)
        tokens, heads, head_dim = x.shape
        native.rotary(strided(x), *angles, y.data_ptr(), tokens, heads, head_dim, direction, on)
        results.append(y)
    return results[0], results[1]
