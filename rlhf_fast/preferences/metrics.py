"""How often scores agree with preferences, with intervals, beside rules that only look at length.

The unit is the strict pair: of every two responses of a comparison whose ranks differ, the better and the worse one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from rlhf_fast.data.schema import Comparison

Z95 = 1.959963984540054
"""The 97.5 % point of the normal distribution."""


@dataclass(frozen=True)
class Pair:
    """A strict pair; margin is score(better) - score(worse), probability how likely it is that `better` is better."""

    better: str
    worse: str
    margin: float
    probability: float = 1.0


@dataclass(frozen=True)
class Interval:
    """A share of `count` pairs and its Wilson 95 % interval, all in [0, 1]. Pairs of one n-way comparison are not
    independent: with n > 2 the true interval is somewhat wider."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] of {self.count}"


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
    """The share of margins above 0; a margin of exactly 0 counts half. Raises `ValueError` for no margins."""
    return wilson(sum(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margins), len(margins))


def wilson(hits: float, count: int) -> Interval:
    """hits / count with the score interval of Wilson (1927). Raises `ValueError` for count 0."""
    if count < 1:
        raise ValueError("a share of 0 pairs is not defined; expected at least one strict pair.")
    p, z2 = hits / count, Z95 * Z95
    centre = (p + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 / (1 + z2 / count) * math.sqrt(p * (1 - p) / count + z2 / (4 * count * count))
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half), count)


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
