"""Decode attention on a GPU: a row's tokens are divided among programs, and a second launch joins what they found."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rlhf_kernels.triton_support import cannot_run

LARGEST_HEAD = {torch.bfloat16: 256, torch.float16: 256, torch.float32: 64}  # float32 spills with larger ones
PROGRAMS_PER_SM = 4
SMALLEST_PART = 128  # tokens of a row, below which a program of its own is not worth its launch


def supports(args: Mapping[str, Any]) -> str | None:
    """Why Triton cannot take these arguments of `decode_attention`, or None."""
    from_device = cannot_run(args)
    if from_device is not None:
        return from_device
    q = args["q"]
    if q.dtype not in LARGEST_HEAD:
        return f"q is {q.dtype}, and it takes bfloat16, float16 and float32"
    most = LARGEST_HEAD[q.dtype]
    if q.shape[-1] > most:
        return f"heads have {q.shape[-1]} entries, and it takes up to {most} in {q.dtype}"
    for name in ("keys", "values"):
        if args[name].stride(-1) != 1:
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
def decode_attention(
    *,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """As the reference; arguments are taken as checked and supported."""
    from rlhf_kernels.decode_attention import triton_kernels as kernels

    (rows, heads, size), kv_heads = q.shape, keys.shape[1]
    q = q.contiguous()
    out = torch.empty_like(q)
    if rows == 0:
        return out
    parts = parts_of(rows, kv_heads, keys.shape[2], _processors(q.device))
    partial = q.new_empty(rows, heads, parts, size, dtype=torch.float32)
    statistics = q.new_empty(2, rows, heads, parts, dtype=torch.float32)
    groups = heads // kv_heads
    kernels.attend(q.dtype, size, softcap=softcap is not None, interpreted=not q.is_cuda).launch(
        (rows, kv_heads * -(-groups // kernels.BLOCK_HEADS), parts),
        q=q,
        keys=keys,
        values=values,
        lengths=lengths,
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
        window=keys.shape[2] if window is None else window,
        scale=scale,
        softcap=softcap,
    )
    kernels.join(q.dtype, size).launch(
        (rows * heads,),
        partial=partial,
        largest=statistics[0],
        sums=statistics[1],
        out=out,
        parts=parts,
        size=size,
    )
    return out
