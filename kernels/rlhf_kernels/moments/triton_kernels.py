"""Count, mean and m2 as Triton kernels: each program of the first reduces a share of the entries, in float64, and
whoever reads the shares merges them in one fixed order (the pairwise merger of Chan, Golub and LeVeque, 1979).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rlhf_kernels.triton_support import POINTER, Variant

BLOCK = 1024
MAX_SHARES = 512


@triton.jit(do_not_specialize=["size"])
def moments_kernel(x, mask, shares, size, BLOCK: tl.constexpr):
    """x (size,) and its mask, or None -> this program's row of shares (programs, 3) float64."""
    count = tl.zeros((), tl.float64)
    mean = tl.zeros((), tl.float64)
    m2 = tl.zeros((), tl.float64)
    for first in range(tl.program_id(0).to(tl.int64) * BLOCK, size, tl.num_programs(0) * BLOCK):
        entry = first + tl.arange(0, BLOCK)
        inside = entry < size
        if mask is not None:
            inside = inside & tl.load(mask + entry, mask=inside, other=0).to(tl.int1)
        value = tl.load(x + entry, mask=inside, other=0.0).to(tl.float64)  # nothing outside the mask is read
        n = tl.sum(inside.to(tl.float64), 0)
        block_mean = tl.sum(value, 0) / tl.maximum(n, 1.0)
        off = tl.where(inside, value - block_mean, 0.0)
        delta = block_mean - mean
        union = tl.maximum(count + n, 1.0)
        m2 += tl.sum(off * off, 0) + delta * delta * count * n / union
        mean += delta * n / union
        count += n
    row = shares + tl.program_id(0) * 3
    tl.store(row, count)
    tl.store(row + 1, mean)
    tl.store(row + 2, m2)


@triton.jit
def merged(shares, programs, SHARES: tl.constexpr):
    """shares (programs, 3) -> count, mean and m2 of the whole, the same in every program that asks."""
    i = tl.arange(0, SHARES)
    n = tl.load(shares + i * 3, mask=i < programs, other=0.0)
    means = tl.load(shares + i * 3 + 1, mask=i < programs, other=0.0)
    m2s = tl.load(shares + i * 3 + 2, mask=i < programs, other=0.0)
    count = tl.sum(n, 0)
    mean = tl.sum(n * means, 0) / tl.maximum(count, 1.0)
    off = means - mean
    return count, mean, tl.sum(m2s + n * off * off, 0)


@triton.jit(do_not_specialize=["programs"])
def merge_kernel(shares, out, programs, SHARES: tl.constexpr):
    """shares (programs, 3) -> out (3,)."""
    count, mean, m2 = merged(shares, programs, SHARES)
    tl.store(out, count)
    tl.store(out + 1, mean)
    tl.store(out + 2, m2)


def moments(dtype: torch.dtype, *, mask: bool) -> Variant:
    """The form for entries of a dtype, with or without a mask."""
    signature = {"x": POINTER[dtype]} | ({"mask": "*u1"} if mask else {}) | {"shares": "*fp64", "size": "i32"}
    constants = {"BLOCK": BLOCK} | ({} if mask else {"mask": None})
    return Variant("moments", moments_kernel, signature, constants, num_warps=4)


MERGE = Variant(
    "merge_moments",
    merge_kernel,
    {"shares": "*fp64", "out": "*fp64", "programs": "i32"},
    {"SHARES": MAX_SHARES},
    num_warps=4,
)
VARIANTS = [
    *(moments(d, mask=m) for d in (torch.float64, torch.float32, torch.bfloat16, torch.float16) for m in (False, True)),
    MERGE,
]
