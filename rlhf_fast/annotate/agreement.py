"""How far annotators agree, with each other, with themselves, and with what is known.

disagreement      of the votes on one item, from 0 to 1
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from rlhf_fast.annotate.items import Ranks, Vote


def outcomes(ranks: Ranks) -> Iterator[tuple[tuple[int, int], int]]:
    """((i, j), which) for each pair i < j of responses that are both ranked: which is 1 where i is the better one, 2
    where j is, 0 for a tie."""
    for i, j in combinations(range(len(ranks)), 2):
        first, second = ranks[i], ranks[j]
        if first is not None and second is not None:
            yield (i, j), 0 if first == second else 1 if first < second else 2


def disagreement(votes: Sequence[Vote]) -> float:
    """Over all pairs of votes and all pairs of responses that both rank: the share that contradict each other, where a
    tie against a side counts half. 0.0 where nothing is ranked twice."""
    said = [dict(outcomes(vote.ranks)) for vote in votes]
    costs = [
        0.0 if one[pair] == other[pair] else 0.5 if 0 in (one[pair], other[pair]) else 1.0
        for one, other in combinations(said, 2)
        for pair in one.keys() & other.keys()
    ]
    return sum(costs) / len(costs) if costs else 0.0
