"""Does sigmoid(score difference) mean what it says? A table, and the expected calibration error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_fast.preferences.metrics import Pair


@dataclass(frozen=True)
class Bin:
    """Pairs whose predicted probability lies in [low, high): their mean prediction and the observed frequency."""

    low: float
    high: float
    count: int
    predicted: float
    observed: float


@dataclass(frozen=True)
class Calibration:
    """bins: those that hold pairs. error: sum of count / total * |predicted - observed| (ECE, Guo et al. 2017)."""

    bins: list[Bin]
    error: float


def calibration(pairs: Sequence[Pair], bins: int = 10) -> Calibration:
    """Each pair from the side that the scores prefer, so predictions lie in [0.5, 1], in `bins` equal parts.

    Scores have to be on the scale that the loss saw (before a reward model is normalised). `observed` counts a pair
    with its label's probability; a pair without one is certain. A margin of 0 counts half. Raises `ValueError` for no
    pairs.
    """
    if not pairs:
        raise ValueError("the calibration of 0 pairs is not defined; expected at least one strict pair.")
    width = 0.5 / bins
    members: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for pair in pairs:
        predicted = 1 / (1 + math.exp(-abs(pair.margin)))
        observed = pair.probability if pair.margin > 0 else 1 - pair.probability if pair.margin < 0 else 0.5
        members[min(bins - 1, int((predicted - 0.5) / width))].append((predicted, observed))
    table = [_bin(0.5 + i * width, width, group) for i, group in enumerate(members) if group]
    error = sum(b.count * abs(b.predicted - b.observed) for b in table) / len(pairs)
    return Calibration(table, error)


def _bin(low: float, width: float, group: list[tuple[float, float]]) -> Bin:
    predicted, observed = (sum(column) / len(group) for column in zip(*group, strict=True))
    return Bin(low, low + width, len(group), predicted, observed)
