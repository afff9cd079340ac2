"""What moments are, and the pairwise merger of two (Chan, Golub and LeVeque 1979)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Moments(NamedTuple):
    """Number of entries, their mean, and the sum of their squared deviations from it: 0-dim float64 tensors."""

    count: Tensor  # type: ignore[assignment]  # the field's name hides tuple.count
    mean: Tensor
    m2: Tensor


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two disjoint sets of entries, from the moments of each; exact but for rounding."""
    count = a.count + b.count
    b_share = b.count / count.clamp(min=1)
    delta = b.mean - a.mean
    return Moments(count, a.mean + delta * b_share, a.m2 + b.m2 + delta.square() * a.count * b_share)
