"""What a reward is given (`RewardBatch`), its interface, and the check that every score passes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_fast.runtime.errors import StepFailed

Conversation = list[dict[str, str]]
"""Messages with role and content, up to the assistant's reply."""


@dataclass
class RewardBatch:
    """B prompts and responses: as text, as the token ids that were sampled, and the dataset's other columns.

    `prompts` is the text that the policy saw, its chat template applied; `conversations` the same prompts as messages,
    None where the row is plain text, for a reward with a template of its own (empty: all are plain text).
    """

    prompts: list[str]
    responses: list[str]
    sequences: list[list[int]]  # prompt ids + response ids, as sampled: never re-tokenised text
    columns: dict[str, list[Any]] = field(default_factory=dict)
    conversations: list[Conversation | None] = field(default_factory=list)
    response_ids: list[list[int]] | None = None  # the ids that were sampled, the stop token included
    finished: list[bool] | None = None  # whether a response ended, or ran out of budget
    tools: list[list[dict[str, Any]] | None] = field(default_factory=list)  # that a conversation offers (empty: none)

    def __post_init__(self) -> None:
        self.conversations = self.conversations or [None] * len(self.responses)
        self.tools = self.tools or [None] * len(self.responses)

    def __len__(self) -> int:
        return len(self.responses)


class RewardSource(Protocol):
    """Gives one score a response; `name` is what it is logged under."""

    name: str

    def score(self, batch: RewardBatch) -> Tensor:
        """(B,) f32 on the CPU."""
        ...


def checked(source: RewardSource, batch: RewardBatch) -> Tensor:
    """The scores of `source`; `StepFailed` as by `check_scores`. NaN stands for a response that a source whose
    `may_skip` is true does not judge."""
    scores = source.score(batch)
    skipped = scores.isnan() & getattr(source, "may_skip", False)
    check_scores(source.name, scores.masked_fill(skipped, 0.0), batch)
    return scores


def check_scores(name: str, scores: Tensor, batch: RewardBatch) -> None:
    """Raise `StepFailed` if there are too few or too many scores, or one is not a finite number."""
    if scores.shape != (len(batch),):
        raise StepFailed(
            f"reward {name!r} returned scores of shape {tuple(scores.shape)} for {len(batch)} responses; "
            "expected one number for each response, in order."
        )
    if not bool(torch.isfinite(scores).all()):
        row = int((~torch.isfinite(scores)).nonzero()[0])
        raise StepFailed(
            f"reward {name!r} gave {float(scores[row])} for response {batch.responses[row][:80]!r}; expected a "
            "finite number. Handle this response in the reward (return a low score, for example)."
        )


def response_texts(
    tokenizer: PreTrainedTokenizerBase, responses: list[list[int]], finished: list[bool], *, special_tokens: bool
) -> list[str]:
    """Responses (ids) as the text that rewards read: without special tokens, or with all of them but the one that
    ended a finished response."""
    if not special_tokens:
        return tokenizer.batch_decode(responses, skip_special_tokens=True)
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    special |= set(tokenizer.all_special_ids)
    kept = [
        ids[:-1] if done and ids and ids[-1] in special else ids for ids, done in zip(responses, finished, strict=True)
    ]
    return tokenizer.batch_decode(kept, skip_special_tokens=False)
