"""Several rewards side by side: one weighted sum for PPO, each part kept under its own name."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf_fast.rewards.source import RewardBatch, RewardSource, checked
from rlhf_fast.runtime.errors import UsageError


@dataclass
class WeightedRewards:
    """score = sum of weight * source; `parts` holds the unweighted (B,) scores of the latest batch by name."""

    sources: list[tuple[RewardSource, float]]
    name: str = "reward"
    parts: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [source.name for source, _ in self.sources]
        if not names or len(set(names)) != len(names):
            raise UsageError(f"rewards are named {names}; expected at least one, each with a name of its own.")

    def score(self, batch: RewardBatch) -> Tensor:
        self.parts = {source.name: checked(source, batch) for source, _ in self.sources}
        return torch.stack([weight * self.parts[source.name] for source, weight in self.sources]).sum(0)
