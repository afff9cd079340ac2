"""Packed attention in C++: a block of queries against all of its keys while both are in cache.

bf16 operands are multiplied with float32 sums; soft-max shares are rounded to bf16 for the product with the values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kernels.extension import native
from rlhf_kernels.layer_native import cannot_take, compute, strided, with_contiguous_heads

supports = cannot_take


def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> native.Attention:
    """The arguments by address: the caller keeps the tensors alive."""
    return native.Attention(
        q=strided(q),
        k=strided(k),
        v=strided(v),
        heads=q.shape[1],
        kv_heads=k.shape[1],
        head_dim=q.shape[2],
        tokens=q.shape[0],
        scale=scale,
        window=window or 0,
    )


def packed_attention(
    *, q: Tensor, k: Tensor, v: Tensor, offsets: list[int], scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """As the reference; arguments are taken as checked and supported."""
    q, k, v = map(with_contiguous_heads, (q, k, v))
    out, log_sum = torch.empty(q.shape, dtype=q.dtype), torch.empty(q.shape[1], q.shape[0])
    arguments = _attention(q, k, v, scale, window)
    native.packed_attention(arguments, out.data_ptr(), log_sum.data_ptr(), offsets, compute(q))
    return out, log_sum


def packed_attention_backward(
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sum: Tensor,
    d_out: Tensor,
    offsets: list[int],
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference; arguments are taken as checked and supported."""
    q, k, v, out, d_out = map(with_contiguous_heads, (q, k, v, out, d_out))
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
    arguments = _attention(q, k, v, scale, window)
    results = dq.data_ptr(), dk.data_ptr(), dv.data_ptr()
    native.packed_attention_backward(
        arguments, strided(out), strided(d_out), log_sum.data_ptr(), *results, offsets, compute(q)
    )
    return dq, dk, dv
