"""An estimate with its interval, and the interval of a share: what reward models, evaluations and reports speak in."""

from __future__ import annotations

import math
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
