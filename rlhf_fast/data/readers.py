"""`read_demonstrations`, `read_comparisons`, `read_prompts`: rows from any source, bad ones never silently lost.

What a reader of the rows would want to know before a run is said once for a data set, on the logger `notices`: columns
that are not read, rows that stand there twice, ties, answers that contradict each other.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Generic, Literal, TypeVar

from rlhf_fast.data import adapters, columns
from rlhf_fast.data.schema import Comparison, Demonstration, PromptRow, prompt_key
from rlhf_fast.data.sources import BadRow, Raw, describe, raw_rows
from rlhf_fast.data.turns import has_context
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.shown import notices

logger = logging.getLogger(__name__)
Row = TypeVar("Row", Demonstration, Comparison, PromptRow)
OnBadRow = Literal["raise", "skip"]


@dataclass
class Read(Generic[Row]):
    """The good rows, and for each row that was skipped where it stands and why."""

    rows: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def read_demonstrations(
    source: Any, *, format: str | None = None, on_bad_row: OnBadRow = "raise"
) -> Read[Demonstration]:
    """Demonstrations for SFT from any `sources.raw_rows` source.

    `format` names an adapter (oasst, sgd); None tells the format from the columns. Raises `UsageError` with file, line
    and reason at the first bad row, unless `on_bad_row="skip"`, which keeps the reasons and logs a warning; and if no
    row is good.
    """
    return _read(source, format, on_bad_row, "demonstrations", columns.demonstration, adapters.DEMONSTRATIONS)


def read_comparisons(source: Any, *, format: str | None = None, on_bad_row: OnBadRow = "raise") -> Read[Comparison]:
    """Ranked responses for a reward model; as `read_demonstrations`, with the adapters oasst and pandalm.

    A comparison whose responses all tie is kept, and so is one of equal responses; warnings count them.
    """
    return _read(source, format, on_bad_row, "comparisons", columns.comparison, adapters.COMPARISONS)


def read_prompts(source: Any, *, format: str | None = None, on_bad_row: OnBadRow = "raise") -> Read[PromptRow]:
    """Prompts for PPO and evaluation with the other columns, from the rows of any format that holds prompts.

    As `read_demonstrations`, with the adapters oasst, pandalm and sgd.
    """
    return _read(source, format, on_bad_row, "prompts", columns.prompt_row, adapters.PROMPTS)


def _read(
    source: Any,
    format: str | None,
    on_bad_row: OnBadRow,
    kind: columns.Kind,
    convert: Callable[[Raw], Row],
    known: Mapping[str, Callable[[Raw], Iterator[Row]]],
) -> Read[Row]:
    if format is not None and format not in known:
        raise UsageError(
            f"format {format!r} does not hold such rows; expected {', '.join(known)}, or none to detect it."
        )
    if on_bad_row not in ("raise", "skip"):
        raise UsageError(f"on_bad_row is {on_bad_row!r}; expected raise or skip.")
    read: Read[Row] = Read()
    places: list[str] = []
    unread: set[str] = set()
    in_context = False
    for where, raw in raw_rows(source):
        try:
            if isinstance(raw, BadRow):
                raise raw
            rows = list(known[format](raw)) if format else [convert(raw)]
            if not format:
                unread |= columns.unread(raw, kind)
                in_context = in_context or has_context(raw)
        except BadRow as error:
            if on_bad_row == "raise":
                raise UsageError(
                    f"{where}: {error}. Mend the row, or set on_bad_row=skip to leave such rows out."
                ) from error
            read.skipped.append(f"{where}: {error}")
            continue
        read.rows += rows
        places += [where] * len(rows)
    if in_context:
        read.rows = [_as_conversation(row) for row in read.rows]
    _report(read, describe(source))
    _say(read.rows, places, unread, kind, describe(source))
    return read


def _as_conversation(row: Row) -> Row:
    """Where one row of a data set has a system text, history or tools, all of its prompts are conversations: else the
    others would not go through the chat template."""
    if isinstance(row.prompt, str) and row.prompt:
        return replace(row, prompt=[{"role": "user", "content": row.prompt}])
    return row


def _report(read: Read[Row], source: str) -> None:
    first = f" The first: {read.skipped[0]}." if read.skipped else ""
    if not read.rows:
        raise UsageError(f"no usable row in {source} ({len(read.skipped)} skipped); expected at least one.{first}")
    if read.skipped:
        logger.warning("skipped %d bad rows of %s, kept %d.%s", len(read.skipped), source, len(read.rows), first)


def _say(rows: Sequence[Row], places: list[str], unread: set[str], kind: str, source: str) -> None:
    """One line each for what the rows hold that a reader would want to know, with the count and the first place."""
    said = f"of %d {kind} of {source}"
    if unread:
        names = sorted(unread)
        more = f" and {len(names) - 30} more" if len(names) > 30 else ""
        notices.info("%s: columns that are not read: %s%s", source, ", ".join(names[:30]), more)
    plain = [i for i, row in enumerate(rows) if _is_plain(row)]
    if 0 < len(plain) < len(rows):
        other = next(i for i, row in enumerate(rows) if not _is_plain(row))
        notices.warning(
            f"%d {said} are plain text and the others conversations, which alone go through the chat template; the "
            "first of each: %s, %s", len(plain), len(rows), places[plain[0]], places[other],
        )  # fmt: skip
    for level, found, what in _findings(rows):
        if found:
            place, earlier = found[0]
            before = "" if earlier is None else f", after {places[earlier]}"
            notices.log(level, f"%d {said} %s; the first: %s%s", len(found), len(rows), what, places[place], before)


def _is_plain(row: Demonstration | Comparison | PromptRow) -> bool:
    return isinstance(row.prompt, str) and getattr(row, "messages", None) is None


Found = list[tuple[int, int | None]]
"""Numbers of rows, each with that of an earlier row that it is held against, if there is one."""


def _findings(rows: Sequence[Row]) -> Iterator[tuple[int, Found, str]]:
    """(level, rows, what they are) for each kind of row that is worth a line."""
    asked: dict[Hashable, int] = {}
    whole: dict[Hashable, int] = {}
    twice: Found = []
    other: Found = []
    for number, row in enumerate(rows):
        question, answer = _question_and_answer(row)
        if (question, answer) in whole:
            twice.append((number, whole[question, answer]))
        elif question is not None and question in asked:
            other.append((number, asked[question]))
        asked.setdefault(question, number)
        whole.setdefault((question, answer), number)
    yield logging.INFO, twice, "stand there more than once"
    yield logging.INFO, other, "have the prompt of an earlier one and another answer"
    pairs = [(number, row) for number, row in enumerate(rows) if isinstance(row, Comparison)]
    ties: Found = [(number, None) for number, row in pairs if len(set(row.ranks)) == 1]
    yield logging.WARNING, ties, "are ties: they say which scores should be equal, not which response is better"
    yield (
        logging.WARNING,
        [(n, None) for n, row in pairs if _ranks_equal_texts(row)],
        "rank two equal responses differently, as if chosen were rejected",
    )
    yield logging.WARNING, _reversals(pairs), "say the opposite of an earlier one"


def _question_and_answer(row: Demonstration | Comparison | PromptRow) -> tuple[Hashable, Hashable]:
    """Short keys of both; a text without a prompt has no question, and a prompt no answer."""
    if isinstance(row, PromptRow):
        return _key([row.prompt, row.tools]), None
    if isinstance(row, Comparison):
        return _key([row.prompt, row.tools]), _key([row.responses, row.ranks, row.probability])
    if row.messages is not None:
        return _key([row.messages[:-1], row.tools]), _key(row.messages[-1])
    return _key([row.prompt, row.tools]) if row.prompt else None, _key(row.completion)


def _key(value: Any) -> bytes:
    return blake2b(json.dumps(value).encode(), digest_size=16).digest()


def _ranks_equal_texts(row: Comparison) -> bool:
    """Whether two equal responses have different ranks."""
    return len(set(row.responses)) < len(set(zip(row.responses, row.ranks, strict=True)))


def _reversals(pairs: Sequence[tuple[int, Comparison]]) -> Found:
    """Pairs whose better response is the worse one in an earlier row of the same prompt."""
    seen: dict[Hashable, int] = {}
    found: Found = []
    for number, row in pairs:
        if len(row.responses) != 2 or row.ranks[0] == row.ranks[1] or row.responses[0] == row.responses[1]:
            continue
        better, worse = row.responses if row.ranks[0] < row.ranks[1] else row.responses[::-1]
        question = prompt_key(row.prompt)
        if (earlier := seen.get(_key([question, worse, better]))) is not None:
            found.append((number, earlier))
        seen.setdefault(_key([question, better, worse]), number)
    return found
