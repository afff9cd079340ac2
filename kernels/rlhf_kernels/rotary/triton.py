"""Rotary embedding on a GPU: one launch for queries and keys, which may be strided views of one product."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rlhf_kernels.triton_support import layer_cannot_run

MAX_HEAD_DIM = 256


def supports(args: Mapping[str, Any]) -> str | None:
    """Why Triton cannot take these arguments of `rotary`, or None."""
    head_dim = args["q"].shape[2]
    if head_dim > MAX_HEAD_DIM:
        return f"heads have {head_dim} entries, and it takes at most {MAX_HEAD_DIM}"
    return layer_cannot_run(args)


def rotary(*, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """As the reference; arguments are taken as checked and supported."""
    from rlhf_kernels.rotary import triton_kernels as kernels

    turned_q, turned_k = q.new_empty(q.shape), k.new_empty(k.shape)
    tokens, heads, head_dim = q.shape
    if turned_q.numel() + turned_k.numel() == 0:
        return turned_q, turned_k
    q, k, cos, sin = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, cos, sin))
    kernels.rotary(q.dtype, head_dim).launch(
        (tokens,),
        q=q,
        k=k,
        cos=cos,
        sin=sin,
        turned_q=turned_q,
        turned_k=turned_k,
        heads=heads,
        kv_heads=k.shape[1],
        half=head_dim // 2,
        q_token_stride=q.stride(0),
        q_head_stride=q.stride(1),
        k_token_stride=k.stride(0),
        k_head_stride=k.stride(1),
        cos_stride=cos.stride(0),
        sin_stride=sin.stride(0),
        direction=-1.0 if inverse else 1.0,
    )
    return turned_q, turned_k
