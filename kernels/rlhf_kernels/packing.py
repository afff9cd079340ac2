"""Conversion between padded (B, T) batches with a mask and flat columns with offsets.

Here: the two conversions. Not here: collation, tokens or attention masks of a model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kernels.checks import check_mask, check_offsets, check_offsets_type

__all__ = ["pack", "unpack"]


def pack(padded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The entries of `padded` (B, T, ...) where `mask` (B, T) bool is True -> flat (N, ...) and int32 offsets (B+1,).

    The order of rows, and of entries within a row, is kept; padding may be on either side or in the middle.
    Differentiable in `padded`; nothing is mutated. Raises ValueError or TypeError for a mask of another shape or
    dtype.
    """
    if padded.dim() < 2:
        raise ValueError(f"padded has shape {tuple(padded.shape)}, expected (B, T, ...): give a batch of sequences")
    check_mask("mask", mask, tuple(padded.shape[:2]))
    cu = torch.zeros(mask.shape[0] + 1, dtype=torch.int32, device=mask.device)
    cu[1:] = mask.sum(1).cumsum(0)
    return padded[mask], cu


def unpack(
    flat: Tensor, cu: Tensor, *, length: int | None = None, fill: float | int | bool = 0
) -> tuple[Tensor, Tensor]:
    """Flat (N, ...) with int32 offsets `cu` (B+1,) -> padded (B, length, ...), padding on the right, and its bool mask.

    `length` defaults to the longest sequence; `fill` is the value of the padding. Differentiable in `flat`; nothing
    is mutated. Raises ValueError or TypeError for offsets that do not fit and for a `length` below the longest
    sequence.
    """
    check_offsets_type("cu", cu)
    check_offsets("cu", cu, flat.shape[0])
    longest = max(torch.diff(cu).tolist(), default=0)
    if length is not None and length < longest:
        raise ValueError(
            f"length is {length}, expected at least {longest}, the longest sequence: raise it or leave it None"
        )
    mask = torch.arange(longest if length is None else length, device=cu.device) < cu.diff()[:, None]  # (B, length)
    padded = flat.new_full((*mask.shape, *flat.shape[1:]), fill)
    rows, columns = mask.nonzero(as_tuple=True)
    return padded.index_put((rows, columns), flat), mask
