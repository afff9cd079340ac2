"""Which rows fit a model: the room that a prompt has, and rows encoded with those that do not fit named or left out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from rlhf_fast.data.readers import OnBadRow
from rlhf_fast.runtime.errors import TooLong, UsageError

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


def encode_rows(
    rows: Sequence[Row], encode: Callable[[Row], T], *, noun: str, source: str, on_bad_row: OnBadRow = "raise"
) -> list[tuple[Row, T]]:
    """Each row with what `encode` makes of it. A row that it refuses with `UsageError` stops the reading, by number
    and source; with `on_bad_row="skip"` such rows are left out and counted in a warning. Raises `UsageError` if none
    is left."""
    kept: list[tuple[Row, T]] = []
    skipped: list[str] = []
    too_long = 0
    for number, row in enumerate(rows, 1):
        try:
            kept.append((row, encode(row)))
        except UsageError as error:
            if on_bad_row == "raise":
                raise UsageError(f"{noun} {number} of {source}: {error}") from error
            skipped.append(f"{noun} {number}: {error}")
            too_long += isinstance(error, TooLong)
    if not kept:
        raise UsageError(f"no {noun} of {source} can be used ({len(skipped)} skipped). {' '.join(skipped[:1])}")
    if skipped:
        logger.warning(
            "skipped %d of %d rows of %s, %d of them as too long. The first: %s",
            len(skipped), len(rows), source, too_long, skipped[0],
        )  # fmt: skip
    return kept
