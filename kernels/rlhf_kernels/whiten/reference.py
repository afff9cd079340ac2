"""Whitening in plain torch, with no wait for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kernels.moments import Moments


@torch.no_grad()
def whiten_(x: Tensor, *, mask: Tensor | None, moments: Moments, shift_mean: bool, ddof: int, eps: float) -> None:
    """The specification of `rlhf_kernels.whiten_`; arguments are taken as checked."""
    changes = moments.count > ddof
    if mask is not None:
        changes = changes & mask
    variance = moments.m2 / (moments.count - ddof).clamp(min=1)
    whitened = (x.double() - moments.mean) * torch.rsqrt(variance + eps)
    if not shift_mean:
        whitened += moments.mean
    x.copy_(torch.where(changes, whitened, x))
