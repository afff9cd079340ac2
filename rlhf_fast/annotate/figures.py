"""What an administrator wants to know of a room: how far it is, how far people agree, who looks careless, which
sources win. `figures` works it out; `as_text` says it in lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlhf_fast.annotate.agreement import (
    AnnotatorFigures,
    alpha,
    annotator_figures,
    check_accuracy,
    kappa,
    position_bias,
    self_consistency,
)
from rlhf_fast.annotate.items import Vote
from rlhf_fast.annotate.ranking import Leaderboard, leaderboard
from rlhf_fast.annotate.store import Store
from rlhf_fast.runtime.statistics import Interval

HOUR = 3600


@dataclass(frozen=True)
class Figures:
    """waiting: items by their number of votes, decided ones left out; done: items with `overlap` votes, or decided.
    by_hour: votes in each hour that had some, by its start in unix seconds. None where there is nothing to tell from.
    """

    items: int
    done: int
    waiting: dict[int, int]
    overlap: int
    votes: int
    by_hour: dict[int, int]
    disagreements: int
    decided: int
    alpha: Interval | None
    alpha_ordinal: Interval | None
    kappa: Interval | None
    left: Interval | None
    consistency: Interval | None
    checks: Interval | None
    annotators: list[AnnotatorFigures]
    leaderboard: Leaderboard


def figures(store: Store, *, resamples: int = 200) -> Figures:
    """All of it. resamples: of the items, for the intervals of alpha and of the leaderboard."""
    votes, decisions, overlap = store.current_votes(None), store.adjudications(), int(store.settings["overlap"])
    items = {item.id: item for kind in ("item", "check") for item in store.items(kind)}
    repeats = {vote.item_id: vote.of for vote in votes if vote.of}
    items |= {item_id: items[of] for item_id, of in repeats.items()}
    real = [vote for vote in votes if vote.item_kind == "item"]
    waiting = store.queue_lengths()
    total = sum(waiting.values()) + len(decisions)
    standing = [vote for vote in real if vote.item_id not in decisions]
    return Figures(
        items=total, done=sum(n for had, n in waiting.items() if had >= overlap) + len(decisions), waiting=waiting,
        overlap=overlap, votes=len(real), by_hour=by_hour(real), disagreements=len(store.queue_of_disagreements()),
        decided=len(decisions), alpha=alpha(real, resamples=resamples),
        alpha_ordinal=alpha(real, "ordinal", resamples=resamples), kappa=kappa(real, overlap),
        left=position_bias(real), consistency=self_consistency(votes), checks=check_accuracy(votes, items),
        annotators=annotator_figures(store.annotators(), votes, items, store.skips()),
        leaderboard=leaderboard(items, [*standing, *decisions.values()], resamples=resamples),
    )  # fmt: skip


def by_hour(votes: Sequence[Vote]) -> dict[int, int]:
    return dict(sorted(Counter(int(vote.at // HOUR * HOUR) for vote in votes).items()))


def as_dict(found: Figures) -> dict[str, Any]:
    """For JSON."""
    return asdict(found)


def as_text(found: Figures) -> str:
    return "\n".join(_lines(found))


def _lines(found: Figures) -> Iterator[str]:
    yield f"items                 {found.done} of {found.items} done ({found.overlap} votes each), {found.votes} votes"
    waiting = ", ".join(f"{count} with {votes}" for votes, count in found.waiting.items())
    yield f"items by votes        {waiting or 'none'}; {found.decided} decided; {found.disagreements} to decide"
    if found.by_hour:
        hours = len(found.by_hour)
        yield f"votes an hour         {found.votes / hours:.1f} in the {hours} hours that had some"
    for label, value in (
        ("Krippendorff's alpha", found.alpha), ("  of ranks", found.alpha_ordinal), ("Fleiss' kappa", found.kappa),
        ("shown first wins", found.left), ("repeats as before", found.consistency), ("check questions", found.checks),
    ):  # fmt: skip
        yield f"{label:<22}{'nothing to tell from yet' if value is None else value}"
    for one in found.annotators:
        yield f"{one.annotator.name}: " + ", ".join(_annotator(one))
    if found.leaderboard.standings:
        yield f"sources ({found.leaderboard.model}, log strength [95 % interval], comparisons)"
        for standing in found.leaderboard.standings:
            yield f"  {standing.source:<30} {standing.strength}, beats another with {standing.win_rate:.2f}"
    yield from (f"note: {note}" for note in found.leaderboard.notes)


def _annotator(one: AnnotatorFigures) -> Iterator[str]:
    yield f"{one.votes} votes, {one.skips} skips"
    if one.seconds is not None:
        yield f"{one.seconds:.1f} s on an item"
    if one.with_others is not None:
        yield f"agrees with others {one.with_others}"
    yield from (f"CARELESS? {flag}" for flag in one.flags)
