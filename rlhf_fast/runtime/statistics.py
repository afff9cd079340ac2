"""Estimates with their intervals (shares, paired differences, win rates): what reward models, evaluations and reports
speak in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_fast.runtime.errors import UsageError

Z95 = 1.959963984540054
"""The 97.5 % point of the normal distribution."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval, from `count` observations."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] of {self.count}"


def wilson(successes: float, count: int) -> Interval:
    """The share successes / count with its 95 % score interval (Wilson 1927); successes may hold halves for ties.

    Raises `UsageError` unless 0 <= successes <= count and count >= 1.
    """
    if count < 1 or not 0 <= successes <= count:
        raise UsageError(f"a share of {successes} in {count} has no interval; expected 0 <= successes <= count >= 1.")
    share, z2 = successes / count, Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), count)


def win_rate(first: Sequence[float], second: Sequence[float]) -> Interval:
    """How often `second` scores higher than `first` on the same prompt; a tie counts half."""
    pairs = list(zip(first, second, strict=True))
    return wilson(sum((b > a) + 0.5 * (a == b) for a, b in pairs), len(pairs))


def mean_difference(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Mean of second - first over paired prompts; the interval is normal, mean +- 1.96 s / sqrt(n) with ddof 1.

    One pair has no spread to estimate: its interval is infinite.
    """
    differences = [b - a for a, b in zip(first, second, strict=True)]
    count = len(differences)
    if count == 0:
        raise UsageError("there are no paired scores to compare; expected at least one prompt.")
    mean = sum(differences) / count
    if count == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    half = Z95 * math.sqrt(sum((d - mean) ** 2 for d in differences) / (count - 1) / count)
    return Interval(mean, mean - half, mean + half, count)


def over_optimised(proxy_delta: float, gold_delta: float) -> bool:
    """The reward that was trained on rose while an independent one fell (Gao et al. 2023).

    Both arguments are differences of mean scores, after minus before.
    """
    return proxy_delta > 0 and gold_delta < 0
