"""Packing in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(padded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The specification of `rlhf_kernels.pack`; arguments are taken as checked."""
    lengths = mask.sum(1)
    cu = torch.zeros(mask.shape[0] + 1, dtype=torch.int32, device=mask.device)
    cu[1:] = lengths.cumsum(0)
    return padded[mask], cu


def unpack(flat: Tensor, cu: Tensor, length: int, fill: float | int | bool) -> tuple[Tensor, Tensor]:
    """The specification of `rlhf_kernels.unpack`; arguments are taken as checked."""
    mask = torch.arange(length, device=cu.device) < cu.diff()[:, None]  # (B, length)
    padded = flat.new_full((*mask.shape, *flat.shape[1:]), fill)
    rows, columns = mask.nonzero(as_tuple=True)
    return padded.index_put((rows, columns), flat), mask
