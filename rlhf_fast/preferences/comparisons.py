"""Comparisons as token ids: what training and evaluation of a reward model take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.encode import encode_replies
from rlhf_fast.data.fitting import TooLong, encode_rows
from rlhf_fast.data.readers import OnBadRow
from rlhf_fast.data.schema import Comparison
from rlhf_fast.preferences.losses import MAX_TIED
from rlhf_fast.runtime.errors import UsageError


@dataclass(frozen=True)
class EncodedComparison:
    """sequences[i]: ids of the prompt, response i and the EOS that ends it; the score is read at that EOS."""

    row: Comparison
    prompt: list[int]
    sequences: list[list[int]]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sequences))


def encode_comparison(tokenizer: PreTrainedTokenizerBase, row: Comparison, *, max_length: int) -> EncodedComparison:
    """Raises `UsageError` for a row that cannot be rendered, a sequence of more than `max_length` tokens (`TooLong`),
    or more ties than the loss visits."""
    prompt, replies = encode_replies(tokenizer, row.prompt, row.responses, tools=row.tools, max_length=max_length)
    sequences = [prompt + reply for reply in replies]
    longest = max(map(len, sequences))
    if longest > max_length:
        raise TooLong(
            f"a prompt with a response has {longest} tokens, over max_length={max_length}. Raise max_length, or set "
            "on_bad_row=skip to leave such rows out."
        )
    tied = max(row.ranks.count(rank) for rank in row.ranks)
    if tied > MAX_TIED:
        raise UsageError(
            f"{tied} responses of one comparison have the same rank; expected {MAX_TIED} at most. Split the comparison."
        )
    return EncodedComparison(row, prompt, sequences)


def encode_comparisons(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Comparison], *, max_length: int, on_bad_row: OnBadRow = "raise",
    source: str = "the comparisons",
) -> tuple[list[EncodedComparison], list[str]]:  # fmt: skip
    """All that fit, and why each of the others was skipped (`on_bad_row="skip"`). Raises `UsageError` if none fits."""
    fitted = encode_rows(
        rows, lambda row: encode_comparison(tokenizer, row, max_length=max_length),
        noun="comparison", source=source, on_bad_row=on_bad_row,
    )  # fmt: skip
    return [encoded for _, encoded in fitted], fitted.skipped
