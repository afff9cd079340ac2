"""Moments and whitening on a GPU; nothing waits for the device, and equal inputs give equal results.

Each program of the first kernel reduces a share of the entries, in float64, and whoever reads the shares merges them in
one fixed order (the pairwise merger of Chan, Golub and LeVeque, 1979): two launches for moments, and for whitening one,
and one more where the moments are x's own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlhf_kernels.triton_support import POINTER, Variant, contiguous_
from rlhf_kernels.whiten import MomentsArguments, WhitenArguments

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


@triton.jit(do_not_specialize=["size", "programs", "ddof"])
def whiten_kernel(
    x,  # (size,), whitened in place
    mask,  # (size,) or None
    shares,  # (programs, 3) float64, as of `moments_kernel`
    size,
    programs,
    ddof,
    eps,
    SHIFT_MEAN: tl.constexpr,
    SHARES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per block of entries; each merges the shares itself, which saves a launch."""
    count, mean, m2 = merged(shares, programs, SHARES)
    scale = 1.0 / tl.sqrt(m2 / tl.maximum(count - ddof, 1.0) + eps)
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    changes = tl.where(entry < size, count, 0.0) > ddof
    if mask is not None:
        changes = changes & tl.load(mask + entry, mask=entry < size, other=0).to(tl.int1)
    whitened = (tl.load(x + entry, mask=changes, other=0.0).to(tl.float64) - mean) * scale
    if not SHIFT_MEAN:
        whitened += mean
    tl.store(x + entry, whitened.to(x.dtype.element_ty), mask=changes)


def moments_form(dtype: torch.dtype, *, mask: bool) -> Variant:
    """The form for entries of a dtype, with or without a mask."""
    signature = {"x": POINTER[dtype]} | ({"mask": "*u1"} if mask else {}) | {"shares": "*fp64", "size": "i32"}
    constants = {"BLOCK": BLOCK} | ({} if mask else {"mask": None})
    return Variant("moments", moments_kernel, signature, constants, num_warps=4)


def whiten_form(dtype: torch.dtype, *, mask: bool, shift_mean: bool) -> Variant:
    """The form for entries of a dtype, with or without a mask, that removes the mean or keeps it."""
    signature = {"x": POINTER[dtype]} | ({"mask": "*u1"} if mask else {})
    signature |= {"shares": "*fp64", "size": "i32", "programs": "i32", "ddof": "i32", "eps": "fp32"}
    constants = {"SHIFT_MEAN": shift_mean, "SHARES": MAX_SHARES, "BLOCK": BLOCK} | ({} if mask else {"mask": None})
    return Variant("whiten", whiten_kernel, signature, constants, num_warps=4)


MERGE = Variant(
    "merge_moments",
    merge_kernel,
    {"shares": "*fp64", "out": "*fp64", "programs": "i32"},
    {"SHARES": MAX_SHARES},
    num_warps=4,
)
_BOTH = (False, True)
VARIANTS = [
    *(moments_form(d, mask=m) for d in (torch.float64, torch.float32, torch.bfloat16, torch.float16) for m in _BOTH),
    MERGE,
    *(
        whiten_form(dtype, mask=mask, shift_mean=shift_mean)
        for dtype in (torch.float32, torch.float64)
        for mask in _BOTH
        for shift_mean in _BOTH
    ),
]


def refusal(a: MomentsArguments | WhitenArguments) -> str | None:
    """Why Triton cannot take x, or None."""
    if not (a.x.is_floating_point() and a.x.dtype in POINTER):
        return f"x has dtype {a.x.dtype}, and it reads float64, float32, bfloat16 and float16"
    return f"x has {a.x.numel()} entries, and it counts below 2^31" if a.x.numel() >= 2**31 else None


def moments(a: MomentsArguments) -> Tensor:
    """As the reference, as one tensor (3,) float64; arguments are taken as checked and supported."""
    out = a.x.new_empty(3, dtype=torch.float64)
    shares = _shares(a.x.contiguous(), None if a.mask is None else a.mask.contiguous())
    MERGE.launch((1,), shares=shares, out=out, programs=shares.shape[0])
    return out


def whiten_(a: WhitenArguments) -> None:
    """As the reference; arguments are taken as checked and supported."""
    if a.x.numel() == 0:
        return
    mask = None if a.mask is None else a.mask.contiguous()
    with contiguous_(a.x) as work:
        shares = _shares(work, mask) if a.moments is None else a.moments.contiguous().view(1, 3)
        whiten_form(a.x.dtype, mask=mask is not None, shift_mean=a.shift_mean).launch(
            (-(-a.x.numel() // BLOCK),),
            x=work,
            mask=mask,
            shares=shares,
            size=a.x.numel(),
            programs=shares.shape[0],
            ddof=a.ddof,
            eps=a.eps,
        )


def _shares(x: Tensor, mask: Tensor | None) -> Tensor:
    """(programs, 3) float64: count, mean and m2 of a share of the contiguous `x` each; they merge to those of x."""
    programs = min(MAX_SHARES, max(1, -(-x.numel() // BLOCK)))
    shares = x.new_empty(programs, 3, dtype=torch.float64)
    moments_form(x.dtype, mask=mask is not None).launch((programs,), x=x, mask=mask, shares=shares, size=x.numel())
    return shares
