"""A reward model that is an adapter of the shared base: it reads the sampled ids, so nothing is tokenised again."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from rlhf_fast.model.batches import MicroBatches
from rlhf_fast.model.roles import Critic, sequence_scores
from rlhf_fast.rewards.source import RewardBatch


@dataclass
class AdapterReward:
    """The scalar of `model` at the last token of prompt + response."""

    name: str
    model: Critic
    micro_batches: MicroBatches = field(default_factory=lambda: MicroBatches(2048))

    def score(self, batch: RewardBatch) -> Tensor:
        return sequence_scores(self.model, batch.sequences, self.micro_batches)
