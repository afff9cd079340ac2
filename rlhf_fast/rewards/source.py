"""The interface of a reward, and the check that every score passes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

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

    def __post_init__(self) -> None:
        self.conversations = self.conversations or [None] * len(self.responses)

    def __len__(self) -> int:
        return len(self.responses)


class RewardSource(Protocol):
    """Gives one score a response; `name` is what it is logged under."""

    name: str

    def score(self, batch: RewardBatch) -> Tensor:
        """(B,) f32 on the CPU."""
        ...


def checked(source: RewardSource, batch: RewardBatch) -> Tensor:
    """The scores of `source`; `StepFailed` if there are too few or many of them, or one is not a finite number."""
    scores = source.score(batch)
    if scores.shape != (len(batch),):
        raise StepFailed(
            f"reward {source.name!r} returned scores of shape {tuple(scores.shape)} for {len(batch)} responses; "
            "expected one number for each response, in order."
        )
    if not bool(torch.isfinite(scores).all()):
        row = int((~torch.isfinite(scores)).nonzero()[0])
        raise StepFailed(
            f"reward {source.name!r} gave {float(scores[row])} for response {batch.responses[row][:80]!r}; expected a "
            "finite number. Handle this response in the reward (return a low score, for example)."
        )
    return scores
