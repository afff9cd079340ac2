"""Whitening as a Triton kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rlhf_kernels.moments.triton_kernels import MAX_SHARES, merged
from rlhf_kernels.triton_support import POINTER, Variant

BLOCK = 1024


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


def whiten(dtype: torch.dtype, *, mask: bool, shift_mean: bool) -> Variant:
    """The form for entries of a dtype, with or without a mask, that removes the mean or keeps it."""
    signature = {"x": POINTER[dtype]} | ({"mask": "*u1"} if mask else {})
    signature |= {"shares": "*fp64", "size": "i32", "programs": "i32", "ddof": "i32", "eps": "fp32"}
    constants = {"SHIFT_MEAN": shift_mean, "SHARES": MAX_SHARES, "BLOCK": BLOCK} | ({} if mask else {"mask": None})
    return Variant("whiten", whiten_kernel, signature, constants, num_warps=4)


VARIANTS = [
    whiten(dtype, mask=mask, shift_mean=shift_mean)
    for dtype in (torch.float32, torch.float64)
    for mask in (False, True)
    for shift_mean in (False, True)
]
