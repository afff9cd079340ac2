"""Win rates, paired differences, and what tells over-optimisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.statistics import Z95, Interval, wilson


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
