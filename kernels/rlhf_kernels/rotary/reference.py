"""Rotary embedding in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary(*, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """The specification of `rlhf_kernels.rotary`; `inverse` turns back."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    cos, sin = cos.to(wide)[:, None], sin.to(wide)[:, None] * (-1 if inverse else 1)

    def turned(x: Tensor) -> Tensor:
        low, high = x.to(wide).chunk(2, -1)
        return torch.cat([low * cos - high * sin, high * cos + low * sin], -1).to(x.dtype)

    return turned(q), turned(k)
