"""What a reward is given (`RewardBatch`), its interface, the check that every score passes, and several rewards side by
side: one weighted sum for PPO, each part kept under its own name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_fast.runtime.distributed import gather
from rlhf_fast.runtime.errors import StepFailed, UsageError

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


class Scores(NamedTuple):
    """What B responses got: total (B,) f32, and by name the unweighted scores (B,) f32 that it is the sum of."""

    total: Tensor
    parts: dict[str, Tensor]

    def gather(self) -> Scores:
        """Those of all processes, in the order of their ranks."""
        return Scores(gather(self.total), {name: gather(scores) for name, scores in self.parts.items()})


@dataclass
class WeightedRewards:
    """total = sum of weight * source.

    A score that is left out (NaN, where a function gave None) adds nothing to the sum. special_tokens: what texts the
    sources read, see `response_texts`.
    """

    sources: list[tuple[RewardSource, float]]
    special_tokens: bool = False

    def __post_init__(self) -> None:
        names = [source.name for source, _ in self.sources]
        if not names or len(set(names)) != len(names):
            raise UsageError(f"rewards are named {names}; expected at least one, each with a name of its own.")

    def score(self, batch: RewardBatch) -> Scores:
        """On the CPU. Raises `StepFailed` for a response that every source leaves out."""
        parts = {source.name: checked(source, batch) for source, _ in self.sources}
        scores = torch.stack([weight * parts[source.name] for source, weight in self.sources])  # (sources, B)
        unjudged = scores.isnan().all(0)
        if unjudged.any():
            response = batch.responses[int(unjudged.nonzero()[0])]
            raise StepFailed(
                f"no reward judges response {response[:80]!r}: {', '.join(parts)} gave None. Expected a number "
                "from one of them for each response; return 0 where that is meant."
            )
        return Scores(scores.nansum(0), parts)
