"""`read_demonstrations`, `read_comparisons`, `read_prompts`: rows from any source, bad ones never silently lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from rlhf_fast.data import adapters, columns
from rlhf_fast.data.schema import Comparison, Demonstration, PromptRow
from rlhf_fast.data.sources import BadRow, Raw, describe, raw_rows
from rlhf_fast.runtime.errors import UsageError

logger = logging.getLogger(__name__)
Row = TypeVar("Row")
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
    return _read(source, format, on_bad_row, columns.demonstration, adapters.DEMONSTRATIONS)


def read_comparisons(source: Any, *, format: str | None = None, on_bad_row: OnBadRow = "raise") -> Read[Comparison]:
    """Ranked responses for a reward model; as `read_demonstrations`, with the adapters oasst and pandalm.

    A comparison whose responses all tie is kept, and a warning counts them.
    """
    read = _read(source, format, on_bad_row, columns.comparison, adapters.COMPARISONS)
    ties = sum(len(set(row.ranks)) == 1 for row in read.rows)
    if ties:
        logger.warning(
            "%d of %d comparisons of %s are ties: they say which scores should be equal, not which response is better",
            ties, len(read.rows), describe(source),
        )  # fmt: skip
    return read


def read_prompts(source: Any, *, format: str | None = None, on_bad_row: OnBadRow = "raise") -> Read[PromptRow]:
    """Prompts for PPO and evaluation with the other columns, from the rows of any format that holds prompts.

    As `read_demonstrations`, with the adapters oasst, pandalm and sgd.
    """
    return _read(source, format, on_bad_row, columns.prompt_row, adapters.PROMPTS)


def _read(
    source: Any,
    format: str | None,
    on_bad_row: OnBadRow,
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
    for where, raw in raw_rows(source):
        try:
            if isinstance(raw, BadRow):
                raise raw
            read.rows += list(known[format](raw)) if format else [convert(raw)]
        except BadRow as error:
            if on_bad_row == "raise":
                raise UsageError(
                    f"{where}: {error}. Mend the row, or set on_bad_row=skip to leave such rows out."
                ) from error
            read.skipped.append(f"{where}: {error}")
    _report(read, describe(source))
    return read


def _report(read: Read[Row], source: str) -> None:
    first = f" The first: {read.skipped[0]}." if read.skipped else ""
    if not read.rows:
        raise UsageError(f"no usable row in {source} ({len(read.skipped)} skipped); expected at least one.{first}")
    if read.skipped:
        logger.warning("skipped %d bad rows of %s, kept %d.%s", len(read.skipped), source, len(read.rows), first)
