"""Moments in plain torch: two passes over float64, and the pairwise merger of Chan, Golub and LeVeque (1979)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Number of entries, their mean, and the sum of their squared deviations from it: 0-dim float64 tensors."""

    count: Tensor  # type: ignore[assignment]  # the field's name hides tuple.count
    mean: Tensor
    m2: Tensor


@torch.no_grad()
def moments(x: Tensor, mask: Tensor | None) -> Moments:
    """The specification of `rlhf_kernels.moments`; arguments are taken as checked."""
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    x = torch.where(mask, x.double(), 0.0)
    count = mask.sum(dtype=torch.float64)
    mean = x.sum() / count.clamp(min=1)
    m2 = torch.where(mask, x - mean, 0.0).square().sum()
    return Moments(count, mean, m2)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two disjoint sets of entries, from the moments of each; exact but for rounding."""
    count = a.count + b.count
    b_share = b.count / count.clamp(min=1)
    delta = b.mean - a.mean
    return Moments(count, a.mean + delta * b_share, a.m2 + b.m2 + delta.square() * a.count * b_share)
