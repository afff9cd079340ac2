"""What a feedback room holds: items to compare, who compares them, and votes.

Item           a prompt and the responses to it, with where each came from
Annotator      who votes
Task           an item as it is handed to one annotator
Vote           what an annotator said of an item, or an administrator who decided
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

from rlhf_fast.data.schema import Message, Prompt, Tools
from rlhf_fast.runtime.errors import UsageError

Ranks = list[int | None]
"""One for each response, in the item's own order: 1 is best, equal numbers are a tie, None was not ranked."""
Kind = Literal["item", "repeat", "check"]
"""repeat: an item that this annotator has answered before, asked again. check: one whose answer is known."""


@dataclass(frozen=True)
class Item:
    """A prompt and two or more responses.

    id: 12 hex digits, which say nothing of what the item is; a row's own id is meta["id"].
    sources: for each response where it came from (model, checkpoint, seed ...); shown to administrators only.
    answer: the ranks that are right, of a check question; None of all others.
    """

    id: str
    prompt: Prompt
    responses: list[str]
    sources: list[dict[str, Any]]
    meta: dict[str, Any] = field(default_factory=dict)
    tools: Tools | None = None
    answer: Ranks | None = None

    @property
    def messages(self) -> list[Message]:
        """The prompt to show: plain text is a user's turn."""
        return [{"role": "user", "content": self.prompt}] if isinstance(self.prompt, str) else self.prompt


def make_item(
    prompt: Prompt,
    responses: Sequence[str],
    sources: Sequence[dict[str, Any]] | None = None,
    *,
    meta: dict[str, Any] | None = None,
    tools: Tools | None = None,
    answer: Ranks | None = None,
) -> Item:
    """An item whose id follows from its prompt, its responses, their models and its row's own id, so that the same row
    is the same item however often it is added. Raises `UsageError` where it cannot be compared."""
    texts, meta = list(responses), dict(meta or {})
    if len(texts) < 2:
        raise UsageError(f"an item has {len(texts)} responses; expected two or more.")
    sources = [dict(source) for source in sources] if sources is not None else [{} for _ in texts]
    if len(sources) != len(texts):
        raise UsageError(f"an item has {len(texts)} responses and {len(sources)} sources; expected one for each.")
    if answer is not None:
        check_ranks(answer, len(texts))
    models = [source.get("model") for source in sources]
    said = json.dumps([prompt, tools, texts, models, meta.get("id"), answer], sort_keys=True, default=str)
    return Item(blake2b(said.encode(), digest_size=6).hexdigest(), prompt, texts, sources, meta, tools, answer)


def check_ranks(ranks: Sequence[int | None], responses: int, *, all_bad: bool = False) -> None:
    """Raise `UsageError` unless they say something of so many responses: two are ranked, or all are bad."""
    if not isinstance(ranks, (list, tuple)) or len(ranks) != responses:
        raise UsageError(f"ranks are {ranks!r} for {responses} responses; expected one for each, or None.")
    given = [rank for rank in ranks if rank is not None]
    if any(isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= responses for rank in given):
        raise UsageError(f"ranks are {list(ranks)!r}; expected whole numbers from 1 (best) to {responses}, or None.")
    if len(given) < 2 and not (all_bad and not given):
        raise UsageError(
            f"{len(given)} of {responses} responses are ranked; expected two or more (what is not ranked is not "
            "compared), or all bad, or a skip."
        )


@dataclass(frozen=True)
class Annotator:
    """role: annotator, or admin, who sees figures and decides disagreements."""

    id: int
    name: str
    role: Literal["annotator", "admin"]


@dataclass(frozen=True)
class Task:
    """An item for one annotator. order: the item's responses as they are shown, by index, the same whenever this
    annotator sees it. lease_until: nobody else gets it before (unix seconds); 0.0 where it is answered and there is no
    lease. position: from 1, of `total` that this annotator may get. vote: what this annotator said last, or None.
    kind is never shown."""

    item: Item
    order: list[int]
    lease_until: float
    position: int
    total: int
    vote: Vote | None = None
    kind: Kind = field(default="item", repr=False)


@dataclass(frozen=True)
class Vote:
    """kind: vote, skip (all ranks None), or adjudicate, an administrator's decision. at: unix seconds; seconds: time on
    the item. item_kind, of: what the item is, and of which item it is a repeat."""

    event_id: int
    kind: Literal["vote", "skip", "adjudicate"]
    item_id: str
    annotator: Annotator
    ranks: Ranks
    all_bad: bool
    note: str
    seconds: float
    shown_order: list[int]
    at: float
    item_kind: Kind = "item"
    of: str | None = None

    @property
    def summary(self) -> str:
        """In the numbers that the annotator saw: `2 > 1 = 3`, `all bad` or `skipped`."""
        if self.kind == "skip":
            return "skipped"
        shown: dict[int, list[str]] = {}
        for place, response in enumerate(self.shown_order, 1):
            rank = self.ranks[response]
            if rank is not None:
                shown.setdefault(rank, []).append(str(place))
        said = " > ".join(" = ".join(places) for _, places in sorted(shown.items()))
        return f"{said}{', ' if said and self.all_bad else ''}{'all bad' if self.all_bad else ''}"


class Answered(NamedTuple):
    """An item that an annotator has voted on or skipped."""

    item_id: str
    at: float
    summary: str


class Progress(NamedTuple):
    """Of one annotator. total: answered and what is left for them now. seconds: median time on an item, or None;
    seconds_left: of all that is left at that pace."""

    answered: int
    skipped: int
    total: int
    seconds: float | None
    seconds_left: float | None


class Disagreement(NamedTuple):
    """score: the share of pairs of votes on a pair of responses that contradict each other, a tie against a side half;
    from 0 to 1."""

    item_id: str
    score: float
    votes: list[Vote]
