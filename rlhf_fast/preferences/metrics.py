"""What scores are worth on comparisons: accuracy with intervals, beside rules that only look at length; calibration.

The unit is the strict pair: of every two responses of a comparison whose ranks differ, the better and the worse one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from rlhf_fast.data.schema import Comparison
from rlhf_fast.runtime.statistics import Interval, wilson


@dataclass(frozen=True)
class Pair:
    """A strict pair; margin is score(better) - score(worse), probability how likely it is that `better` is better.

    Pairs of one n-way comparison are not independent: with n > 2 the true interval of a share is somewhat wider.
    """

    better: str
    worse: str
    margin: float
    probability: float = 1.0


@dataclass(frozen=True)
class LengthControlled:
    """value: the mean of the accuracies on pairs whose better response is the longer one, and the shorter one.

    A rule that looks at length alone gets 0.5. Pairs of equal length are in neither; None where a group is empty.
    """

    value: float | None
    better_is_longer: Interval | None
    better_is_shorter: Interval | None


def strict_pairs(row: Comparison, scores: Sequence[float]) -> list[Pair]:
    """The strict pairs of a comparison; scores[i] belongs to row.responses[i]. Ties in the ranks give none."""
    pairs = []
    for i, j in combinations(range(len(row.responses)), 2):
        if row.ranks[i] == row.ranks[j]:
            continue
        better, worse = (i, j) if row.ranks[i] < row.ranks[j] else (j, i)
        first = 1.0 if row.probability is None else row.probability if better == 0 else 1 - row.probability
        pairs.append(Pair(row.responses[better], row.responses[worse], scores[better] - scores[worse], first))
    return pairs


def accuracy(margins: Sequence[float]) -> Interval:
    """The share of margins above 0; a margin of exactly 0 counts half. Raises `UsageError` for no margins."""
    return wilson(sum(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margins), len(margins))


def pair_accuracy(pairs: Sequence[Pair]) -> Interval:
    return accuracy([pair.margin for pair in pairs])


def length_controlled_accuracy(pairs: Sequence[Pair]) -> LengthControlled:
    """See `LengthControlled`; length is in characters."""
    longer = [pair.margin for pair in pairs if len(pair.better) > len(pair.worse)]
    shorter = [pair.margin for pair in pairs if len(pair.better) < len(pair.worse)]
    groups = [accuracy(margins) if margins else None for margins in (longer, shorter)]
    first, second = groups
    value = None if first is None or second is None else (first.value + second.value) / 2
    return LengthControlled(value, first, second)


def distinct_words(text: str) -> int:
    """Different words, split at whitespace and lower-cased."""
    return len(set(text.lower().split()))


def rule_accuracy(pairs: Sequence[Pair], measure: Callable[[str], float]) -> Interval:
    """The accuracy of 'the response with the larger measure wins': `len` or `distinct_words`, say."""
    return accuracy([measure(pair.better) - measure(pair.worse) for pair in pairs])


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


@dataclass(frozen=True)
class Evaluation:
    """What a reward model is worth on comparisons, beside two rules that only look at length. Shares in [0, 1]."""

    accuracy: Interval
    length_controlled: LengthControlled
    longest_wins: Interval
    most_distinct_words_wins: Interval
    calibration: Calibration

    @property
    def accuracies(self) -> list[tuple[str, Interval]]:
        """What is ranked by, and how often it orders a pair as people did."""
        control = self.length_controlled
        parts = [("pairs won by the longer", control.better_is_longer), ("by the shorter", control.better_is_shorter)]
        return [
            ("reward model", self.accuracy),
            *((name, interval) for name, interval in parts if interval is not None),
            ("longest wins", self.longest_wins),
            ("most distinct words wins", self.most_distinct_words_wins),
        ]


def measure(pairs: Sequence[Pair]) -> Evaluation:
    """What the margins of `pairs` are worth. Raises `UsageError` for no pairs."""
    return Evaluation(
        pair_accuracy(pairs), length_controlled_accuracy(pairs), rule_accuracy(pairs, len),
        rule_accuracy(pairs, distinct_words), calibration(pairs),
    )  # fmt: skip
