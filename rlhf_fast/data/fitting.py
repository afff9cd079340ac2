"""Which rows fit a model: the room that a prompt has, and rows encoded with those that do not fit named or left out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from rlhf_fast.data.readers import OnBadRow
from rlhf_fast.runtime.errors import UsageError

Row = TypeVar("Row")
T = TypeVar("T")
logger = logging.getLogger(__name__)


def prompt_room(response_length: int, *limits: int | None) -> int | None:
    """Tokens that a prompt may have beside a response in the smallest of the limits; None where there is no limit.

    Raises `UsageError` if the response alone leaves no room for a prompt.
    """
    stated = [limit for limit in limits if limit is not None]
    if not stated:
        return None
    if response_length >= min(stated):
        raise UsageError(
            f"response_length={response_length} leaves no room for a prompt: the longest sequence, by max_length and "
            f"the model's context, has {min(stated)} tokens. Lower response_length."
        )
    return min(stated) - response_length


class TooLong(UsageError):
    """A row with more tokens than are allowed."""


@dataclass
class Fitted(Generic[Row, T]):
    """Rows that can be used, each with what it was encoded as; why each of the others cannot, and how many of these
    have more tokens than are allowed."""

    pairs: list[tuple[Row, T]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    too_long: int = 0

    def __iter__(self) -> Iterator[tuple[Row, T]]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)


def encode_rows(
    rows: Sequence[Row], encode: Callable[[Row], T], *, noun: str, source: str, on_bad_row: OnBadRow = "raise"
) -> Fitted[Row, T]:
    """Each row with what `encode` makes of it. A row that it refuses with `UsageError` stops the reading, by number
    and source; with `on_bad_row="skip"` such rows are left out and counted in a warning. Raises `UsageError` if none
    is left."""
    fitted: Fitted[Row, T] = Fitted()
    for number, row in enumerate(rows, 1):
        try:
            fitted.pairs.append((row, encode(row)))
        except UsageError as error:
            if on_bad_row == "raise":
                raise UsageError(f"{noun} {number} of {source}: {error}") from error
            fitted.skipped.append(f"{noun} {number}: {error}")
            fitted.too_long += isinstance(error, TooLong)
    skipped = fitted.skipped
    if not fitted.pairs:
        raise UsageError(f"no {noun} of {source} can be used ({len(skipped)} skipped). {' '.join(skipped[:1])}")
    if skipped:
        logger.warning(
            "skipped %d of %d rows of %s, %d of them for their length. The first: %s",
            len(skipped), len(rows), source, fitted.too_long, skipped[0],
        )  # fmt: skip
    return fitted
