"""Comparisons as token ids: read, split by prompt, checked and encoded, for training and evaluation alike."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.encode import encode_replies
from rlhf_fast.data.fitting import TooLong, encode_rows
from rlhf_fast.data.readers import OnBadRow, read_comparisons
from rlhf_fast.data.schema import Comparison, prompt_key, split_by_prompt
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.preferences.config import RewardConfig
from rlhf_fast.preferences.losses import MAX_TIED
from rlhf_fast.runtime.errors import UsageError

logger = logging.getLogger(__name__)


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


@dataclass
class Split:
    """Tokenised comparisons, and how many were left out as bad or too long."""

    train: list[EncodedComparison]
    heldout: list[EncodedComparison]
    skipped: int


def read_split(config: RewardConfig, tokenizer: PreTrainedTokenizerBase) -> Split:
    """Read, split by prompt and tokenise, checking every row. Raises `UsageError`."""
    train, bad = _read(config, str(config.dataset_name))
    heldout: list[Comparison] = []
    if config.eval_dataset_name:
        heldout, more = _read(config, config.eval_dataset_name)
        bad += more
        _warn_of_shared_prompts(train, heldout)
    elif config.eval_fraction > 0:
        train, heldout = split_by_prompt(train, config.eval_fraction, config.seed)
    if heldout and all(len(set(row.ranks)) == 1 for row in heldout):
        raise UsageError(
            f"all {len(heldout)} held-out comparisons are ties, so no accuracy can be measured; expected some with "
            "different ranks. Raise eval_fraction, change seed, or give eval_dataset_name."
        )
    parts = []
    for name, rows in ((config.dataset_name, train), (config.eval_dataset_name or config.dataset_name, heldout)):
        parts.append(_encode(config, tokenizer, str(name), rows))
    return Split(parts[0][0], parts[1][0], bad + parts[0][1] + parts[1][1])


def check_context(shared: SharedModel, split: Split) -> None:
    """Raise `UsageError` if a sequence is longer than the model's context."""
    longest = max(len(sequence) for c in (*split.train, *split.heldout) for sequence in c.sequences)
    if shared.max_length is not None and longest > shared.max_length:
        raise UsageError(
            f"a prompt with a response has {longest} tokens and the model's context is {shared.max_length}. Set "
            f"max_length={shared.max_length} and on_bad_row=skip to leave such rows out, or shorten them."
        )


def _read(config: RewardConfig, name: str) -> tuple[list[Comparison], int]:
    read = read_comparisons(name, format=config.dataset_format, on_bad_row=config.on_bad_row)
    return read.rows, len(read.skipped)


def _encode(
    config: RewardConfig, tokenizer: PreTrainedTokenizerBase, name: str, rows: list[Comparison]
) -> tuple[list[EncodedComparison], int]:
    if not rows:
        return [], 0
    encoded, skipped = encode_comparisons(
        tokenizer, rows, max_length=config.max_length, on_bad_row=config.on_bad_row, source=name
    )
    return encoded, len(skipped)


def _warn_of_shared_prompts(train: list[Comparison], heldout: list[Comparison]) -> None:
    shared = {prompt_key(row.prompt) for row in train} & {prompt_key(row.prompt) for row in heldout}
    if shared:
        logger.warning(
            "%d prompts of eval_dataset_name are in dataset_name too: the accuracy will look better than it is",
            len(shared),
        )
