"""How far annotators agree: with each other, with themselves, and with what is known.

alpha               Krippendorff's alpha with an interval from resampled items
fleiss_kappa        for items with equally many votes
disagreement        of the votes on one item, from 0 to 1
position_bias       how often what was shown first wins
self_consistency    of hidden repeats with the first answer
check_accuracy      of check questions with the known answer
annotator_figures   all of it for each annotator, with what looks careless

Everything is about pairs of responses that somebody ranked: the first wins, the second does, or they tie. An agreement
of two answers on a pair is 1 where they say the same, 0.5 where one says tie, 0 where they contradict each other.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Literal

from rlhf_fast.annotate.items import Annotator, Item, Ranks, Vote
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.statistics import Interval, wilson

if TYPE_CHECKING:
    import numpy as np

Level = Literal["nominal", "ordinal"]
Outcomes = dict[tuple[int, int], int]


def outcomes(ranks: Ranks) -> Outcomes:
    """For each pair i < j of responses that are both ranked: 1 where i is the better one, 2 where j is, 0 for a tie."""
    found = {}
    for i, j in combinations(range(len(ranks)), 2):
        first, second = ranks[i], ranks[j]
        if first is not None and second is not None:
            found[i, j] = 0 if first == second else 1 if first < second else 2
    return found


def agreements(one: Outcomes, other: Outcomes) -> list[float]:
    """On each pair that both say something of."""
    pairs = sorted(one.keys() & other.keys())
    return [1.0 if one[p] == other[p] else 0.5 if 0 in (one[p], other[p]) else 0.0 for p in pairs]


def disagreement(votes: Sequence[Vote]) -> float:
    """1 - the mean agreement over all pairs of votes on an item; 0.0 where nothing is ranked twice."""
    said = [outcomes(vote.ranks) for vote in votes]
    found = [value for one, other in combinations(said, 2) for value in agreements(one, other)]
    return 1 - sum(found) / len(found) if found else 0.0


def by_item(votes: Iterable[Vote]) -> dict[str, list[Vote]]:
    grouped: dict[str, list[Vote]] = {}
    for vote in votes:
        grouped.setdefault(vote.item_id, []).append(vote)
    return grouped


# Among annotators


def alpha(votes: Sequence[Vote], level: Level = "nominal", *, resamples: int = 400, seed: int = 0) -> Interval | None:
    """Krippendorff's alpha with a 95 % interval (percentiles over resampled items); count is the items with two votes
    or more. None where it is not defined: no such item, or everybody says the same of everything.

    nominal: who wins each pair of responses, or a tie. ordinal: each response's rank, from votes that rank all of an
    item's responses (ranks among fewer are not comparable).
    """
    import numpy as np

    counts = _value_counts(votes, level)
    if not counts:
        return None
    value = _alpha(np.concatenate(counts), level)
    if value is None:
        return None
    draw = np.random.default_rng(seed)
    drawn = (
        _alpha(np.concatenate([counts[i] for i in draw.integers(len(counts), size=len(counts))]), level)
        for _ in range(resamples)
    )
    values = [one for one in drawn if one is not None]
    low, high = np.percentile(values, [2.5, 97.5]) if values else (value, value)
    return Interval(value, min(float(low), value), max(float(high), value), len(counts))


def _value_counts(votes: Sequence[Vote], level: Level) -> list[np.ndarray]:
    """For each item with two votes or more an array (units, values): how many said what of each unit."""
    import numpy as np

    size = 3 if level == "nominal" else max((len(vote.ranks) for vote in votes), default=0)
    found = []
    for answers in by_item(votes).values():
        units: dict[object, np.ndarray] = {}
        for vote in answers:
            for unit, value in _values(vote.ranks, level):
                units.setdefault(unit, np.zeros(size, dtype=np.int64))[value] += 1
        shared = [row for row in units.values() if row.sum() > 1]
        if shared:
            found.append(np.stack(shared))
    return found


def _values(ranks: Ranks, level: Level) -> Iterator[tuple[object, int]]:
    if level == "nominal":
        yield from outcomes(ranks).items()
    elif None not in ranks:
        distinct = sorted({rank for rank in ranks if rank is not None})
        yield from ((i, distinct.index(rank)) for i, rank in enumerate(ranks) if rank is not None)


def _alpha(counts: np.ndarray, level: Level) -> float | None:
    try:
        import krippendorff
    except ImportError as error:
        raise UsageError('the agreement of annotators needs more packages; `pip install "rlhf-fast[ui]"`.') from error
    if (counts.sum(axis=0) > 0).sum() < 2:  # one value only: nothing to agree on by more than chance
        return None
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement=level))


def fleiss_kappa(counts: Sequence[Sequence[int]]) -> float:
    """Of counts (items, values), how many annotators gave an item each value (Fleiss 1971). Raises `UsageError` unless
    all items have as many annotators, two or more, and two values were given."""
    raters = {sum(row) for row in counts}
    if len(raters) != 1 or min(raters) < 2:
        raise UsageError(f"items have {sorted(raters)} votes; expected all as many, two or more.")
    n, rows = raters.pop(), len(counts)
    observed = sum((sum(c * c for c in row) - n) / (n * (n - 1)) for row in counts) / rows
    shares = [sum(column) / (rows * n) for column in zip(*counts, strict=True)]
    expected = sum(share * share for share in shares)
    if expected == 1:
        raise UsageError("everybody gave every item the same value; expected two values or more.")
    return (observed - expected) / (1 - expected)


def kappa(votes: Sequence[Vote], raters: int) -> Interval | None:
    """Fleiss' kappa over the pairs of responses that exactly so many annotators compared; count is those pairs (there
    is no interval: low and high are the value). None where there are none, or all say the same."""
    counts = _value_counts(votes, "nominal")
    rows = [[int(value) for value in row] for units in counts for row in units if row.sum() == raters]
    if raters < 2 or not rows or sum(any(column) for column in zip(*rows, strict=True)) < 2:
        return None
    value = fleiss_kappa(rows)
    return Interval(value, value, value, len(rows))


# Of one vote


def position_bias(votes: Iterable[Vote]) -> Interval | None:
    """How often the response that was shown earlier (left, or above) wins, of pairs that are no tie: 0.5 is none. Each
    vote counts once, with its share of such pairs."""
    shares = []
    for vote in votes:
        place = {response: at for at, response in enumerate(vote.shown_order)}
        decided = [(pair, which) for pair, which in outcomes(vote.ranks).items() if which]
        if decided:
            won = sum((place[i] < place[j]) == (which == 1) for (i, j), which in decided)
            shares.append(won / len(decided))
    return wilson(sum(shares), len(shares)) if shares else None


def self_consistency(votes: Sequence[Vote]) -> Interval | None:
    """Agreement of hidden repeats with the same annotator's first answer, over pairs of responses. votes: of all
    kinds."""
    first = {(vote.annotator.id, vote.item_id): vote for vote in votes}
    found = []
    for vote in votes:
        before = first.get((vote.annotator.id, vote.of or ""))
        if vote.item_kind == "repeat" and before is not None:
            found += agreements(outcomes(before.ranks), outcomes(vote.ranks))
    return wilson(sum(found), len(found)) if found else None


def check_accuracy(votes: Iterable[Vote], items: Mapping[str, Item]) -> Interval | None:
    """Agreement of check questions with their answers, over the answers' pairs; a pair that was not ranked is wrong."""
    right, pairs = 0.0, 0
    for vote in votes:
        answer = items[vote.item_id].answer if vote.item_kind == "check" else None
        if answer is not None:
            known = outcomes(answer)
            right, pairs = right + sum(agreements(known, outcomes(vote.ranks))), pairs + len(known)
    return wilson(right, pairs) if pairs else None


# Of one annotator


@dataclass(frozen=True)
class AnnotatorFigures:
    """seconds: median on an item. left: `position_bias`. with_others: agreement with others' votes on the same items;
    among_others: mean agreement of the others with each other. Shares are of votes. None where there is nothing to tell
    from. flags: sentences, empty where nothing looks careless."""

    annotator: Annotator
    votes: int
    skips: int
    seconds: float | None
    characters_a_second: float | None
    ties: float | None
    all_bad: float | None
    left: Interval | None
    consistency: Interval | None
    checks: Interval | None
    with_others: Interval | None
    among_others: float | None
    flags: list[str]


FASTEST_READING = 100.0
"""Characters a second; a text that is read has about 20 to 30."""


def annotator_figures(
    annotators: Iterable[Annotator], votes: Sequence[Vote], items: Mapping[str, Item], skips: Mapping[int, int]
) -> list[AnnotatorFigures]:
    """For each annotator. votes: of all kinds; items: by id, those of the votes; skips: by annotator."""
    own: dict[int, list[Vote]] = {}
    for vote in votes:
        own.setdefault(vote.annotator.id, []).append(vote)
    found: dict[tuple[int, int], list[float]] = {}  # by two annotators
    for answers in by_item(vote for vote in votes if vote.item_kind == "item").values():
        for one, other in combinations(answers, 2):
            two = one.annotator.id, other.annotator.id
            found.setdefault(two, []).extend(agreements(outcomes(one.ranks), outcomes(other.ranks)))
    return [_figures(one, own.get(one.id, []), items, skips.get(one.id, 0), found) for one in annotators]


def _figures(
    annotator: Annotator, votes: Sequence[Vote], items: Mapping[str, Item], skips: int,
    agreed: Mapping[tuple[int, int], list[float]],
) -> AnnotatorFigures:  # fmt: skip
    real = [vote for vote in votes if vote.item_kind == "item"]
    timed = [vote for vote in real if vote.seconds > 0]
    said = [outcome for vote in real for outcome in outcomes(vote.ranks).values()]
    rates = [sum(map(len, items[vote.item_id].responses)) / vote.seconds for vote in timed]
    with_others = [value for two, values in agreed.items() if annotator.id in two for value in values]
    among_others = [value for two, values in agreed.items() if annotator.id not in two for value in values]
    figures = AnnotatorFigures(
        annotator=annotator, votes=len(real), skips=skips,
        seconds=statistics.median(vote.seconds for vote in timed) if timed else None,
        characters_a_second=statistics.median(rates) if rates else None,
        ties=said.count(0) / len(said) if said else None,
        all_bad=sum(vote.all_bad for vote in real) / len(real) if real else None,
        left=position_bias(real), consistency=self_consistency(votes), checks=check_accuracy(votes, items),
        with_others=wilson(sum(with_others), len(with_others)) if with_others else None,
        among_others=statistics.mean(among_others) if among_others else None, flags=[],
    )  # fmt: skip
    figures.flags.extend(_careless(figures, len(timed)))
    return figures


def _careless(of: AnnotatorFigures, timed: int) -> Iterator[str]:
    """What is beyond chance: the whole 95 % interval is bad, from a least number of observations on."""
    if of.checks and of.checks.count >= 3 and of.checks.high < 0.8:
        yield f"check questions: {of.checks.value:.0%} of {of.checks.count} comparisons right"
    if of.consistency and of.consistency.count >= 5 and of.consistency.high < 0.7:
        yield f"repeats: {of.consistency.value:.0%} of {of.consistency.count} comparisons as before"
    if of.left and of.left.count >= 20 and (of.left.low > 0.75 or of.left.high < 0.25):
        side = "first" if of.left.value > 0.5 else "last"
        share = max(of.left.value, 1 - of.left.value)
        yield f"position: what is shown {side} wins {share:.0%} of {of.left.count} votes"
    others, among = of.with_others, of.among_others
    if others and among is not None and others.count >= 20 and others.high < among - 0.1:
        yield (
            f"others: agrees with them on {others.value:.0%} of {others.count} comparisons, and they with each other "
            f"on {among:.0%}"
        )
    if of.characters_a_second and timed >= 10 and of.characters_a_second > FASTEST_READING:
        yield f"speed: {of.characters_a_second:.0f} characters a second, faster than anybody reads"
