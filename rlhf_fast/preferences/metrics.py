"""How often scores agree with preferences, with intervals, beside rules that only look at length.

The unit is the strict pair: of every two responses of a comparison whose ranks differ, the better and the worse one.
"""

from __future__ import annotations

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
