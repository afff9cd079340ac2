"""Rotary embedding on a GPU: one launch for queries and keys, which may be strided views of one product."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlhf_kernels.rotary import Arguments
from rlhf_kernels.triton_support import LAYER_DTYPES, POINTER, Variant, layer_refusal

MAX_HEAD_DIM = 256
HALVES = (32, 64, 128)  # pairs of a head that a block holds: heads of up to 256 entries
PAIRS = 1024  # of a block, over its heads


@triton.jit
def _turn(x, y, heads, head_stride, half, cos, sin, HEADS: tl.constexpr, HALF: tl.constexpr):
    """The heads of one token: x is read with its stride, y is contiguous."""
    pair = tl.arange(0, HALF)[None, :]
    for first in range(0, heads, HEADS):
        head = (first + tl.arange(0, HEADS)).to(tl.int64)[:, None]
        inside = (head < heads) & (pair < half)
        entry = x + head * head_stride + pair
        low = tl.load(entry, mask=inside, other=0.0).to(tl.float32)
        high = tl.load(entry + half, mask=inside, other=0.0).to(tl.float32)
        turned = y + head * (2 * half) + pair
        tl.store(turned, (low * cos - high * sin).to(y.dtype.element_ty), mask=inside)
        tl.store(turned + half, (high * cos + low * sin).to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["heads", "kv_heads"])
def rotary_kernel(
    q,  # (T, heads, 2 half), tokens and heads apart by their strides
    k,  # (T, kv_heads, 2 half), likewise
    cos,  # (T, half), tokens `cos_stride` apart
    sin,  # (T, half), tokens `sin_stride` apart
    turned_q,  # (T, heads, 2 half)
    turned_k,  # (T, kv_heads, 2 half)
    heads,
    kv_heads,
    half,
    q_token_stride,
    q_head_stride,
    k_token_stride,
    k_head_stride,
    cos_stride,
    sin_stride,
    direction,  # 1, or -1 to turn back
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """Each pair (x[d], x[d + half]) turns by the token's angle d. One program per token."""
    token = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, HALF)[None, :]
    c = tl.load(cos + token * cos_stride + pair, mask=pair < half, other=0.0).to(tl.float32)
    s = tl.load(sin + token * sin_stride + pair, mask=pair < half, other=0.0).to(tl.float32) * direction
    q += token * q_token_stride
    k += token * k_token_stride
    turned_q += token * heads * (2 * half)
    turned_k += token * kv_heads * (2 * half)
    _turn(q, turned_q, heads, q_head_stride, half, c, s, HEADS, HALF)
    _turn(k, turned_k, kv_heads, k_head_stride, half, c, s, HEADS, HALF)


@cache
def form(dtype: torch.dtype, head_dim: int) -> Variant:
    """The form for entries of a dtype and heads of at most `head_dim` entries."""
    half = next(half for half in HALVES if 2 * half >= head_dim)
    tensors = ("q", "k", "cos", "sin", "turned_q", "turned_k")
    numbers = ("heads", "kv_heads", "half", "q_token_stride", "q_head_stride", "k_token_stride", "k_head_stride")
    signature = dict.fromkeys(tensors, POINTER[dtype])
    signature |= dict.fromkeys((*numbers, "cos_stride", "sin_stride"), "i32") | {"direction": "fp32"}
    return Variant("rotary", rotary_kernel, signature, {"HEADS": PAIRS // half, "HALF": half}, num_warps=4)


VARIANTS = [form(dtype, 2 * half) for dtype in LAYER_DTYPES for half in HALVES]


def refusal(a: Arguments) -> str | None:
    """Why Triton cannot take these heads, or None."""
    head_dim = a.q.shape[2]
    if head_dim > MAX_HEAD_DIM:
        return f"heads have {head_dim} entries, and it takes at most {MAX_HEAD_DIM}"
    return layer_refusal(a)


def rotary(a: Arguments) -> tuple[Tensor, Tensor]:
    """As the reference; arguments are taken as checked and supported."""
    turned_q, turned_k = a.q.new_empty(a.q.shape), a.k.new_empty(a.k.shape)
    tokens, heads, head_dim = a.q.shape
    if turned_q.numel() + turned_k.numel() == 0:
        return turned_q, turned_k
    q, k, cos, sin = (x if x.stride(-1) == 1 else x.contiguous() for x in (a.q, a.k, a.cos, a.sin))
    form(q.dtype, head_dim).launch(
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
        direction=-1.0 if a.inverse else 1.0,
    )
    return turned_q, turned_k
