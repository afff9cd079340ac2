"""From votes to training data: pairs, n-way rankings, or every vote as it was given, as JSON lines or Parquet.

An administrator's decision on an item stands for all its votes. Otherwise votes are added up pair by pair: a pair's
share is the part of its votes that say what most say, and a pair or an item below the least share is left out. Whatever
is left out is counted, by reason.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from rlhf_fast.annotate.agreement import by_item, disagreement, outcomes
from rlhf_fast.annotate.items import Annotator, Item, Ranks, Vote
from rlhf_fast.annotate.store import Store
from rlhf_fast.data.schema import PromptRow, split_by_prompt
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.files import disk_errors, sync, temporary_of, write_text

Format = Literal["pairs", "ranks", "votes"]
Ties = Literal["drop", "half", "keep"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Policy:
    """How votes become rows.

    ties: what a vote for a tie is. drop: nothing, it is not counted. half: half a vote for either side. keep: as half,
    and what most call a tie is written as one (a reward model learns it as 1/2); the others leave out what is even.
    min_agreement: least share of a pair's votes that say what is written (ranks: least mean agreement of an item's
    votes). min_votes: least votes that say something of a pair (ranks: of an item). soft: write the share of votes as
    the pair's probability, which the reward model is then trained towards. pseudonyms: annotators are numbers.
    """

    ties: Ties = "drop"
    min_agreement: float = 0.5
    min_votes: int = 1
    soft: bool = False
    pseudonyms: bool = False


@dataclass
class Exported:
    """rows, and how many pairs or items were left out, by reason."""

    rows: list[Row] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        out = ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.most_common())
        return f"{len(self.rows):,} rows" + (f"; left out: {out}" if out else "")


def export(store: Store, format: Format, policy: Policy | None = None) -> Exported:
    """What the store says, in the order of its items; check questions and repeats are in `votes` only."""
    policy = policy or Policy()
    if format == "votes":
        return Exported(list(_vote_rows(store, policy)))
    decisions, votes, found = store.adjudications(), by_item(store.current_votes()), Exported()
    for item in store.items():
        said = [decisions[item.id]] if item.id in decisions else votes.get(item.id, [])
        one = _pairs(item, said, policy) if format == "pairs" else _ranking(item, said, policy)
        found.rows += one.rows
        found.left_out += one.left_out
    return found


def write_export(exported: Exported, path: str | Path, *, test_fraction: float = 0.0, seed: int = 0) -> list[Path]:
    """Write the rows to `path` (.jsonl or .parquet), and about `test_fraction` of the prompts, with all their rows, to
    a file beside it (out.jsonl: out-test.jsonl). Returns the paths. Raises `UsageError`."""
    path = Path(path).expanduser()
    if path.suffix not in (".jsonl", ".parquet") or path.is_dir():
        raise UsageError(f"cannot export to {str(path)!r}; expected a file whose name ends with .jsonl or .parquet.")
    if not exported.rows:
        found = str(exported) if exported.left_out else "nobody has ranked two responses yet"
        raise UsageError(f"there is nothing to export: {found}. Collect more votes, or ask for less agreement.")
    parts = {path: exported.rows}
    if test_fraction:
        wrapped = [PromptRow(row["prompt"], row) for row in exported.rows]
        train, test = split_by_prompt(wrapped, test_fraction, seed)
        other = path.with_name(f"{path.stem}-test{path.suffix}")
        parts = {path: [row.columns for row in train], other: [row.columns for row in test]}
    with disk_errors(f"write {str(path)!r}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        for file, rows in parts.items():
            write_rows(file, rows)
    return list(parts)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """The whole file or nothing."""
    if path.suffix == ".jsonl":
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError("writing Parquet files needs more packages; `pip install rlhf-fast[data]`.") from error
    if len({isinstance(row["prompt"], str) for row in rows}) > 1:
        raise UsageError(
            "some prompts are plain text and the others conversations, which a Parquet column does not hold together; "
            "export .jsonl."
        )
    flat = [{name: _column(name, value) for name, value in row.items()} for row in rows]
    temporary = temporary_of(path)
    try:
        parquet.write_table(pyarrow.Table.from_pylist(flat), temporary)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _column(name: str, value: Any) -> Any:
    """Objects whose keys differ from row to row go into a column of Parquet as JSON."""
    return json.dumps(value, ensure_ascii=False) if name in ("provenance", "tools", "meta", "sources") else value


# Pairs


@dataclass(frozen=True)
class Count:
    """Votes on a pair: for the first, for the second, for a tie."""

    first: int
    second: int
    ties: int

    def outcome(self, ties: Ties) -> tuple[int, float]:
        """(1, 2, or 0 for a tie or no majority; the share of the votes that say so)."""
        halves = 0 if ties == "drop" else self.ties / 2
        votes = self.first + self.second + 2 * halves
        if self.first == self.second:
            return 0, 0.0 if ties == "drop" or not votes else self.ties / votes
        return (1 if self.first > self.second else 2), (max(self.first, self.second) + halves) / votes


def counts(votes: Iterable[Vote]) -> dict[tuple[int, int], Count]:
    """By pair i < j of an item's responses that a vote ranks both of."""
    found: dict[tuple[int, int], list[int]] = {}
    for vote in votes:
        for pair, which in outcomes(vote.ranks).items():
            found.setdefault(pair, [0, 0, 0])[which] += 1
    return {pair: Count(first, second, ties) for pair, (ties, first, second) in sorted(found.items())}


def _pairs(item: Item, votes: Sequence[Vote], policy: Policy) -> Exported:
    found, decided = Exported(), any(vote.kind == "adjudicate" for vote in votes)
    for (i, j), count in counts(votes).items():
        which, share = count.outcome(policy.ties)
        number = count.first + count.second + (0 if policy.ties == "drop" else count.ties)
        if not decided and number < policy.min_votes:
            found.left_out["pairs with too few votes" if number else "pairs that all call a tie"] += 1
        elif which == 0 and (policy.ties != "keep" or not count.ties):
            found.left_out["pairs that are even"] += 1
        elif share < policy.min_agreement:
            found.left_out["pairs with too little agreement"] += 1
        else:
            chosen, rejected = (j, i) if which == 2 else (i, j)
            found.rows.append(_pair_row(item, chosen, rejected, which == 0, share, votes, policy))
    return found


def _pair_row(
    item: Item, chosen: int, rejected: int, tie: bool, share: float, votes: Sequence[Vote], policy: Policy
) -> Row:
    row: Row = {"prompt": item.prompt, "chosen": item.responses[chosen], "rejected": item.responses[rejected]}
    if tie or policy.soft:
        row["probability"] = 0.5 if tie else share
    of = {"chosen": item.sources[chosen], "rejected": item.sources[rejected]}
    return row | _common(item, votes, policy, of, share)


# Rankings


def _ranking(item: Item, votes: Sequence[Vote], policy: Policy) -> Exported:
    """One row: each response's rank by the mean share of its pairs that it wins (ties half, as Borda counts), among
    the responses that are ranked."""
    found, decided = Exported(), any(vote.kind == "adjudicate" for vote in votes)
    if not any(outcomes(vote.ranks) for vote in votes):
        if votes:
            found.left_out["items that nobody ranked"] += 1
        return found
    ranking = aggregate(item, votes, policy.ties)
    agreement = 1 - disagreement(votes)
    kept = [i for i, rank in enumerate(ranking) if rank is not None]
    ranks = [rank for rank in ranking if rank is not None]
    if not decided and len(votes) < policy.min_votes:
        found.left_out["items with too few votes"] += 1
    elif agreement < policy.min_agreement:
        found.left_out["items with too little agreement"] += 1
    elif len(ranks) < 2 or (len(set(ranks)) == 1 and policy.ties != "keep"):
        found.left_out["items that are even"] += 1
    elif len(set(ranks)) < len(ranks) and policy.ties != "keep":
        found.left_out["items with a tie in their ranking (ties=keep, or format=pairs, has them)"] += 1
    else:
        row: Row = {"prompt": item.prompt, "responses": [item.responses[i] for i in kept], "ranks": ranks}
        of = {"responses": [item.sources[i] for i in kept]}
        found.rows.append(row | _common(item, votes, policy, of, agreement))
    return found


def aggregate(item: Item, votes: Sequence[Vote], ties: Ties = "keep") -> Ranks:
    """Ranks 1, 2 ... of an item's responses, the best first; None of one that nobody compared."""
    shares: dict[int, list[float]] = {}
    for (i, j), count in counts(votes).items():
        halves = 0.0 if ties == "drop" else count.ties / 2
        votes_on_pair = count.first + count.second + 2 * halves
        if votes_on_pair:
            shares.setdefault(i, []).append((count.first + halves) / votes_on_pair)
            shares.setdefault(j, []).append((count.second + halves) / votes_on_pair)
    scores = {i: round(sum(own) / len(own), 9) for i, own in shares.items()}
    levels = sorted(set(scores.values()), reverse=True)
    return [levels.index(scores[i]) + 1 if i in scores else None for i in range(len(item.responses))]


# What stands beside


def _common(item: Item, votes: Sequence[Vote], policy: Policy, of: Mapping[str, Any], share: float) -> Row:
    """Tools, which belong to the prompt, and where the row comes from."""
    provenance = {
        "item": item.id, "id": item.meta.get("id"), "sources": dict(of), "agreement": round(share, 4),
        "decided": any(vote.kind == "adjudicate" for vote in votes), "all_bad": sum(vote.all_bad for vote in votes),
        "said": [{"annotator": _name(vote.annotator, policy), "at": when(vote.at), "ranks": vote.ranks,
                  "shown_order": vote.shown_order} for vote in votes],
    }  # fmt: skip
    return ({"tools": item.tools} if item.tools else {}) | {"provenance": provenance}


def _vote_rows(store: Store, policy: Policy) -> Iterator[Row]:
    items: dict[str, Item] = {}
    said = sorted([*store.current_votes(None), *store.adjudications().values()], key=lambda vote: vote.event_id)
    for vote in said:
        item = items.setdefault(vote.item_id, store.item(vote.item_id))
        row: Row = {"prompt": item.prompt, "responses": item.responses, "ranks": vote.ranks}
        row |= {"tools": item.tools} if item.tools else {}
        yield row | {
            "all_bad": vote.all_bad, "note": vote.note, "annotator": _name(vote.annotator, policy),
            "at": when(vote.at), "seconds": vote.seconds, "shown_order": vote.shown_order, "sources": item.sources,
            "kind": "decision" if vote.kind == "adjudicate" else vote.item_kind, "item": vote.item_id,
            "repeat_of": vote.of, "event": vote.event_id, "meta": item.meta,
        }  # fmt: skip


def _name(annotator: Annotator, policy: Policy) -> str:
    return f"annotator {annotator.id}" if policy.pseudonyms else annotator.name


def when(at: float) -> str:
    """Unix seconds as ISO 8601, in UTC."""
    return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds")
