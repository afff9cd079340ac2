"""The leaderboard: how good the sources of responses are, from who was preferred to whom.

Bradley-Terry: P(i beats j) = s_i / (s_i + s_j), of each pair of responses; a tie is half a win for either. Plackett-
Luce: the same for whole rankings of three or more, best first; a ranking with ties counts half in either order of those
that tie. What is reported is log s, with mean 0 over each group of sources that are compared with one another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rlhf_fast.annotate.agreement import by_item, outcomes
from rlhf_fast.annotate.items import Item, Vote
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.statistics import Interval

if TYPE_CHECKING:
    import numpy as np

Model = Literal["bradley-terry", "plackett-luce"]
REGULARISATION = 0.01
"""`alpha` of choix, where a source has won or lost all: without it there is no finite strength."""


@dataclass(frozen=True)
class Standing:
    """A source. strength: log s; count is its comparisons. win_rate: P(it beats another source of its group), the
    mean over them. group: sources of different groups were never compared, not even by way of others."""

    source: str
    strength: Interval
    win_rate: float
    wins: int
    ties: int
    losses: int
    group: int


@dataclass(frozen=True)
class Leaderboard:
    """standings: by group, then the strongest first. notes: sentences on what the numbers do not say."""

    model: Model
    standings: list[Standing]
    notes: list[str]


def source_name(source: Mapping[str, Any]) -> str:
    """model and checkpoint; empty where the source does not say."""
    return " ".join(str(source[name]) for name in ("model", "checkpoint") if source.get(name) not in (None, ""))


def leaderboard(
    items: Mapping[str, Item], votes: Sequence[Vote], *, model: Model | None = None, resamples: int = 200,
    seed: int = 0, name: Callable[[Mapping[str, Any]], str] = source_name,
) -> Leaderboard:  # fmt: skip
    """From votes on items (by id), with 95 % intervals (percentiles over resampled items). model: None takes
    plackett-luce where a vote ranks three or more different sources. name: what a source is called."""
    rankings = [_rankings(items, answers, name) for answers in by_item(votes).values()]
    rankings = [one for one in rankings if one]
    names = sorted({source for one in rankings for ranking in one for source in ranking})
    if not names:
        unnamed = "no vote compares two different sources that have a name (a model, a checkpoint)"
        return Leaderboard(model or "bradley-terry", [], [unnamed])
    several = any(len(ranking) > 2 for one in rankings for ranking in one)
    chosen: Model = model or ("plackett-luce" if several else "bradley-terry")
    groups = _groups(names, rankings)
    standings: list[Standing] = []
    notes = [f"{len(groups)} groups of sources were never compared with one another: strengths hold within a group"]
    notes = notes if len(groups) > 1 else []
    for number, group in enumerate(groups, 1):
        own = [one for one in rankings if any(source in group for ranking in one for source in ranking)]
        found, unbounded = _standings(group, own, chosen, number, resamples, seed)
        standings += found
        if unbounded:
            notes.append(
                f"{', '.join(unbounded)} won or lost every comparison with others: strength and interval are held "
                "finite by a regularisation only"
            )
    return Leaderboard(chosen, standings, notes)


Ranking = dict[str, int]
"""Different sources and their ranks; a source that stands there twice with its best and worst is left out."""


def _rankings(
    items: Mapping[str, Item], votes: Sequence[Vote], name: Callable[[Mapping[str, Any]], str]
) -> list[Ranking]:
    """Of one item's votes. Two responses of one source say nothing of sources, so each pair of an item in which a
    source stands twice is a ranking of its own, and pairs within a source are left out."""
    found: list[Ranking] = []
    for vote in votes:
        sources = [name(source) for source in items[vote.item_id].sources]
        ranked = [(sources[i], rank) for i, rank in enumerate(vote.ranks) if rank is not None and sources[i]]
        if len({source for source, _ in ranked}) == len(ranked):
            found += [dict(ranked)] if len(ranked) > 1 else []
        else:
            found += [
                {sources[i]: int(vote.ranks[i] or 0), sources[j]: int(vote.ranks[j] or 0)}
                for i, j in outcomes(vote.ranks)
                if sources[i] and sources[j] and sources[i] != sources[j]
            ]
    return found


def _groups(names: Sequence[str], rankings: Sequence[Sequence[Ranking]]) -> list[list[str]]:
    """Sources that are connected by comparisons, the largest group first."""
    root = {name: name for name in names}

    def find(name: str) -> str:
        while root[name] != name:
            name = root[name]
        return name

    for one in rankings:
        for ranking in one:
            first, *others = ranking
            for other in others:
                root[find(other)] = find(first)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(find(name), []).append(name)
    return sorted(groups.values(), key=lambda group: (-len(group), group))


def _standings(
    group: list[str], items: Sequence[Sequence[Ranking]], model: Model, number: int, resamples: int, seed: int
) -> tuple[list[Standing], list[str]]:
    """Those of one group, the strongest first, and the sources whose strength has no bound."""
    import numpy as np

    wins = np.stack([_wins(group, one) for one in items])  # (items, sources, sources)
    total = wins.sum(axis=0)
    unbounded = _unbounded(group, total)
    if model == "bradley-terry":
        strengths = _bradley_terry(total)
    else:
        strengths = _plackett_luce(group, [ranking for one in items for ranking in one], bool(unbounded))
    draw, drawn = np.random.default_rng(seed), []
    for _ in range(resamples):
        sample = draw.integers(len(items), size=len(items))
        if model == "bradley-terry":
            drawn.append(_bradley_terry(wins[sample].sum(axis=0), strengths))
        else:
            drawn.append(_plackett_luce(group, [ranking for i in sample for ranking in items[i]], True))
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0) if drawn else (strengths, strengths)
    beats = 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    counts = {name: [0, 0, 0] for name in group}
    for ranking in (ranking for one in items for ranking in one):
        for name, rank in ranking.items():
            for other, its in ranking.items():
                if other != name:
                    counts[name][0 if rank < its else 1 if rank == its else 2] += 1
    found = [
        Standing(
            name,
            Interval(
                float(strengths[i]), float(min(low[i], strengths[i])), float(max(high[i], strengths[i])),
                sum(counts[name]),
            ),
            float((beats[i].sum() - 0.5) / (len(group) - 1)), counts[name][0], counts[name][1], counts[name][2], number,
        )
        for i, name in enumerate(group)
    ]  # fmt: skip
    return sorted(found, key=lambda one: -one.strength.value), unbounded


def _wins(group: list[str], rankings: Sequence[Ranking]) -> np.ndarray:
    """(sources, sources): how often the one of the row beat that of the column, ties a half each."""
    import numpy as np

    at, wins = {name: i for i, name in enumerate(group)}, np.zeros((len(group), len(group)))
    for ranking in rankings:
        for name, rank in ranking.items():
            for other, its in ranking.items():
                if name != other:
                    wins[at[name], at[other]] += 1.0 if rank < its else 0.5 if rank == its else 0.0
    return wins


def _unbounded(group: list[str], wins: np.ndarray) -> list[str]:
    """Sources outside the largest set in which everybody has lost to somebody, by way of others, and won: without it
    maximum likelihood sends strengths to infinity (Ford 1957)."""
    import numpy as np

    reach = (wins > 0) | np.eye(len(group), dtype=bool)
    for k in range(len(group)):
        reach |= reach[:, [k]] & reach[[k], :]
    mutual = reach & reach.T
    largest = mutual[int(mutual.sum(axis=1).argmax())]
    if len(group) > 1 and largest.sum() == 1:
        return list(group)
    return [] if largest.all() else [name for name, inside in zip(group, largest, strict=True) if not inside]


def _bradley_terry(wins: np.ndarray, near: np.ndarray | None = None) -> np.ndarray:
    """(sources,) log strengths; near: where to begin, which saves time only."""
    import numpy as np

    choix = _choix()
    bounded = not _unbounded([""] * len(wins), wins)
    try:
        found: np.ndarray = choix.ilsr_pairwise_dense(
            wins, alpha=0.0 if bounded else REGULARISATION, initial_params=near, max_iter=10_000
        )
    except RuntimeError as error:
        raise UsageError(f"the strengths of the sources do not converge ({error}); collect more votes.") from error
    return found - np.mean(found)


def _plackett_luce(group: list[str], rankings: Sequence[Ranking], regularised: bool) -> np.ndarray:
    import numpy as np

    at = {name: i for i, name in enumerate(group)}
    orders = []
    for ranking in rankings:
        for turn in (1, -1):  # those that tie stand once in either order
            orders.append(sorted((at[name] for name in ranking), key=lambda i: (ranking[group[i]], turn * i)))
    if all(orders[i] == orders[i + 1] for i in range(0, len(orders), 2)):
        orders = orders[::2]
    try:
        found: np.ndarray = _choix().ilsr_rankings(
            len(group),
            [tuple(order) for order in orders],
            alpha=REGULARISATION if regularised else 0.0,
            max_iter=10_000,
        )
    except RuntimeError as error:
        raise UsageError(f"the strengths of the sources do not converge ({error}); collect more votes.") from error
    return found - np.mean(found)


def _choix() -> Any:
    try:
        import choix
    except ImportError as error:
        raise UsageError('a leaderboard needs more packages; `pip install "rlhf-fast[ui]"`.') from error
    return choix
