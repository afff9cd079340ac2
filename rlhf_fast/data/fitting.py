"""Which rows fit a model: the room that a prompt has, and rows encoded with those that do not fit named or left out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.readers import OnBadRow
from rlhf_fast.model.template import Endless
from rlhf_fast.runtime.errors import UsageError

Row = TypeVar("Row")
T = TypeVar("T")
logger = logging.getLogger(__name__)
_PLAIN = 64  # characters for each allowed token up to which a text is tokenised without further ado


class TooLong(UsageError):
    """A row with more tokens than are allowed."""


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


def refuse_far_too_long(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], max_length: int | None) -> None:
    """Raise `TooLong` for a text, rendered as it is read, that is far over `max_length` tokens, before the whole of it
    is tokenised.

    No number of characters tells that: a tokenizer may drop white space, or make one token of an unknown word of any
    length. So the beginning of the text is tokenised, and twice as much of it while that is not over the limit; a
    beginning with more than twice the allowed tokens cannot belong to a text that fits, as a token more or less at
    the cut is all that what follows can change.
    """
    if max_length is None:
        return
    for text in texts:
        size = _PLAIN * max(max_length, 1)
        while len(text) > size:
            tokens = len(tokenizer(text[:size], add_special_tokens=False, verbose=False)["input_ids"])
            if tokens > 2 * max_length:
                raise TooLong(
                    f"a text of {len(text)} characters is far over the {max_length} tokens that fit: its first {size} "
                    f"have {tokens}. Shorten it, or leave it out with on_bad_row=skip."
                )
            size *= 2


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
    and source; with `on_bad_row="skip"` such rows are left out and counted in a warning, unless the chat template does
    not end. Raises `UsageError` if none is left."""
    fitted: Fitted[Row, T] = Fitted()
    for number, row in enumerate(rows, 1):
        try:
            fitted.pairs.append((row, encode(row)))
        except UsageError as error:
            if on_bad_row == "raise" or isinstance(error, Endless):
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
