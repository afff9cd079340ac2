"""Decode attention on a GPU, in two launches (Dao et al. 2023, "Flash-Decoding").

    attend   one program for a row, a group of query heads that share keys, and a part of the row's tokens: the running
             soft-max over blocks of tokens, each read once for all heads of the group
    join     one program for a row and head: the parts' sums, each rescaled to the largest score of all

A part's sums are over e^(score - largest of the part), so joining them is exact but for rounding. Lengths are read on
the device; a part beyond a row's end has the sum 0 and weighs nothing.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlhf_kernels.decode_attention import Arguments
from rlhf_kernels.triton_math import logits
from rlhf_kernels.triton_support import POINTER, Variant

BLOCK_HEADS = 16  # query heads of a program, as many as a matrix instruction takes rows
LARGEST_HEAD = {torch.bfloat16: 256, torch.float16: 256, torch.float32: 64}  # float32 spills with larger ones
PROGRAMS_PER_SM = 4
SMALLEST_PART = 128  # tokens of a row, below which a program of its own is not worth its launch


@triton.jit
def _operand(x, UPCAST: tl.constexpr):
    """x as `tl.dot` takes it."""
    if UPCAST:
        x = x.to(tl.float32)
    return x


@triton.jit
def _tokens_of_part(length, window, BLOCK_TOKENS: tl.constexpr):
    """The first token of this program's part of a row, and the one after its last."""
    first = tl.maximum(length - window, 0)
    share = tl.cdiv(tl.cdiv(length - first, tl.num_programs(2)), BLOCK_TOKENS) * BLOCK_TOKENS
    start = first + tl.program_id(2) * share
    return start, tl.minimum(start + share, length)


@triton.jit
def _scores(query, key, token, inside, scale, softcap, UPCAST: tl.constexpr):
    """softcap(scale q k^T) (BLOCK_HEADS, BLOCK_TOKENS), -inf where there is no token."""
    score = tl.dot(_operand(query, UPCAST), tl.trans(_operand(key, UPCAST)), input_precision="ieee")
    score *= scale
    if softcap is not None:
        score, _ = logits(score, None, token, True, 1.0, softcap)
    return tl.where(inside[None, :], score, float("-inf"))


@triton.jit(do_not_specialize=["window"], do_not_specialize_on_alignment=["lengths"])
def attend_kernel(
    q,  # (B, heads, D)
    keys,  # (B or more, kv_heads, L, D)
    values,  # (B or more, kv_heads, L, D)
    lengths,  # (B,) int64
    partial,  # (B, heads, parts, D) float32
    largest,  # (B, heads, parts)
    sums,  # (B, heads, parts)
    groups,
    kv_heads,
    size,
    row_stride,
    head_stride,
    token_stride,
    value_row_stride,
    value_head_stride,
    value_token_stride,
    window,
    scale,
    softcap,  # or None
    BLOCK_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    UPCAST: tl.constexpr,  # the interpreter multiplies the bits of bfloat16: it is given float32
):
    """One program per row, group of BLOCK_HEADS query heads and part of the row's tokens."""
    row = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(groups, BLOCK_HEADS)
    kv_head = tl.program_id(1) // blocks
    part, parts = tl.program_id(2), tl.num_programs(2)
    h = (tl.program_id(1) % blocks) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    head = kv_head * groups + h
    served = h < groups
    d = tl.arange(0, BLOCK_SIZE)
    entry = d < size
    at = (row * (kv_heads * groups) + head).to(tl.int64)
    query = tl.load(q + at[:, None] * size + d[None, :], mask=served[:, None] & entry[None, :], other=0.0)
    start, stop = _tokens_of_part(tl.load(lengths + row).to(tl.int32), window, BLOCK_TOKENS)
    keys += row * row_stride + kv_head.to(tl.int64) * head_stride
    values += row * value_row_stride + kv_head.to(tl.int64) * value_head_stride

    m = tl.full((BLOCK_HEADS,), -3.0e38, tl.float32)
    total = tl.zeros((BLOCK_HEADS,), tl.float32)
    acc = tl.zeros((BLOCK_HEADS, BLOCK_SIZE), tl.float32)
    for begin in range(start, stop, BLOCK_TOKENS):
        t = begin + tl.arange(0, BLOCK_TOKENS)
        inside = t < stop
        mask = inside[:, None] & entry[None, :]
        key = tl.load(keys + t[:, None] * token_stride + d[None, :], mask=mask, other=0.0)
        score = _scores(query, key, t, inside, scale, softcap, UPCAST)
        new_m = tl.maximum(m, tl.max(score, 1))
        p = tl.exp(score - new_m[:, None])
        shrink = tl.exp(m - new_m)
        total = total * shrink + tl.sum(p, 1)
        value = tl.load(values + t[:, None] * value_token_stride + d[None, :], mask=mask, other=0.0)
        value = _operand(value, UPCAST)
        acc = acc * shrink[:, None] + tl.dot(p.to(value.dtype), value, input_precision="ieee")
        m = new_m
    tl.store(largest + at * parts + part, m, mask=served)
    tl.store(sums + at * parts + part, total, mask=served)
    tl.store(partial + (at * parts + part)[:, None] * size + d[None, :], acc, mask=served[:, None] & entry[None, :])


@triton.jit
def join_kernel(
    partial,  # (B * heads, parts, D) float32
    largest,  # (B * heads, parts)
    sums,  # (B * heads, parts)
    out,  # (B * heads, D)
    parts,
    size,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, BLOCK_PARTS)
    there = part < parts
    m = tl.load(largest + at * parts + part, mask=there, other=-3.0e38)
    weight = tl.exp(m - tl.max(m, 0))
    total = tl.sum(weight * tl.load(sums + at * parts + part, mask=there, other=0.0), 0)
    d = tl.arange(0, BLOCK_SIZE)
    entry = d < size
    acc = tl.zeros((BLOCK_SIZE,), tl.float32)
    top = tl.max(m, 0)
    for p in range(0, parts):
        share = tl.exp(tl.load(largest + at * parts + p) - top)
        acc += share * tl.load(partial + (at * parts + p) * size + d, mask=entry, other=0.0)
    tl.store(out + at * size + d, (acc / total).to(out.dtype.element_ty), mask=entry)


def block_size(size: int) -> int:
    """The power of two that a head's entries are padded to."""
    return max(64, triton.next_power_of_2(size))


def attend_form(dtype: torch.dtype, size: int, *, softcap: bool, interpreted: bool = False) -> Variant:
    """The form for heads of `size` entries of a dtype."""
    columns = dict.fromkeys(("partial", "largest", "sums"), "*fp32")
    signature = {**dict.fromkeys(("q", "keys", "values"), POINTER[dtype]), "lengths": "*i64", **columns}
    strides = ("row_stride", "head_stride", "token_stride")
    numbers = ("groups", "kv_heads", "size", *strides, *(f"value_{name}" for name in strides), "window")
    signature |= {**dict.fromkeys(numbers, "i32"), "scale": "fp32"} | ({"softcap": "fp32"} if softcap else {})
    padded, wide = block_size(size), dtype == torch.float32
    constants = {
        "BLOCK_HEADS": BLOCK_HEADS, "BLOCK_SIZE": padded, "UPCAST": interpreted,
        "BLOCK_TOKENS": 64 if padded == 64 and not (wide or softcap) else 32, **({} if softcap else {"softcap": None}),
    }  # fmt: skip
    large = padded == 256  # more warps and one block of tokens at a time, or the sums of a head spill
    stages = 1 if wide or large else 2
    warps, product = 8 if large else 4, None if wide else r"mma\.sync"  # sixteen heads are too few for wgmma
    return Variant("attend", attend_kernel, signature, constants, warps, stages, product)


def join_form(dtype: torch.dtype, size: int) -> Variant:
    signature = {**dict.fromkeys(("partial", "largest", "sums"), "*fp32"), "out": POINTER[dtype]}
    signature |= {"parts": "i32", "size": "i32"}
    return Variant("join", join_kernel, signature, {"BLOCK_PARTS": 64, "BLOCK_SIZE": block_size(size)}, num_warps=2)


_FORMS = [(dtype, size) for dtype in (torch.bfloat16, torch.float16) for size in (64, 128, 256)] + [(torch.float32, 64)]
VARIANTS = [
    *(attend_form(dtype, size, softcap=softcap) for dtype, size in _FORMS for softcap in (False, True)),
    *(join_form(dtype, size) for dtype, size in _FORMS),
]


def refusal(a: Arguments) -> str | None:
    """Why Triton cannot take these tensors, or None."""
    if a.q.dtype not in LARGEST_HEAD:
        return f"q is {a.q.dtype}, and it takes bfloat16, float16 and float32"
    most = LARGEST_HEAD[a.q.dtype]
    if a.q.shape[-1] > most:
        return f"heads have {a.q.shape[-1]} entries, and it takes up to {most} in {a.q.dtype}"
    for name in ("keys", "values"):
        if getattr(a, name).stride(-1) != 1:
            return f"the entries of {name} are not side by side in memory; call .contiguous() on it first"
    return None


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def parts_of(rows: int, kv_heads: int, length: int, processors: int) -> int:
    """Into how many parts each row's tokens are divided, so that all processors have work: a power of two up to 64."""
    wanted = min(PROGRAMS_PER_SM * processors // max(1, rows * kv_heads), length // SMALLEST_PART, 64)
    return 1 << (max(1, wanted).bit_length() - 1)


@torch.no_grad()
def decode_attention(a: Arguments) -> Tensor:
    """As the reference; arguments are taken as checked and supported."""
    q, keys, values = a.q.contiguous(), a.keys, a.values
    (rows, heads, size), kv_heads = q.shape, keys.shape[1]
    out = torch.empty_like(q)
    if rows == 0:
        return out
    parts = parts_of(rows, kv_heads, keys.shape[2], _processors(q.device))
    partial = q.new_empty(rows, heads, parts, size, dtype=torch.float32)
    statistics = q.new_empty(2, rows, heads, parts, dtype=torch.float32)
    groups = heads // kv_heads
    attend_form(q.dtype, size, softcap=a.softcap is not None, interpreted=not q.is_cuda).launch(
        (rows, kv_heads * -(-groups // BLOCK_HEADS), parts),
        q=q,
        keys=keys,
        values=values,
        lengths=a.lengths,
        partial=partial,
        largest=statistics[0],
        sums=statistics[1],
        groups=groups,
        kv_heads=kv_heads,
        size=size,
        row_stride=keys.stride(0),
        head_stride=keys.stride(1),
        token_stride=keys.stride(2),
        value_row_stride=values.stride(0),
        value_head_stride=values.stride(1),
        value_token_stride=values.stride(2),
        window=keys.shape[2] if a.window is None else a.window,
        scale=a.scale,
        softcap=a.softcap,
    )
    join_form(q.dtype, size).launch(
        (rows * heads,),
        partial=partial,
        largest=statistics[0],
        sums=statistics[1],
        out=out,
        parts=parts,
        size=size,
    )
    return out
