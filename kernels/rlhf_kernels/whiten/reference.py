"""Whitening in plain torch, with no wait for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kernels.moments import reference


def whiten_(x: Tensor, *, mask: Tensor | None, moments: Tensor | None, shift_mean: bool, ddof: int, eps: float) -> None:
    """The specification of `rlhf_kernels.whiten_`, with moments (3,) f64; arguments are taken as checked."""
    count, mean, m2 = (reference.moments(x, mask=mask) if moments is None else moments).unbind()
    changes = count > ddof
    if mask is not None:
        changes = changes & mask
    variance = m2 / (count - ddof).clamp(min=1)
    whitened = (x.double() - mean) * torch.rsqrt(variance + eps)
    if not shift_mean:
        whitened += mean
    x.copy_(torch.where(changes, whitened, x))
