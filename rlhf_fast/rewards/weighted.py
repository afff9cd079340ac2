"""Several rewards side by side: one weighted sum for PPO, each part kept under its own name."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf_fast.rewards.source import RewardBatch, RewardSource, checked
from rlhf_fast.runtime.errors import StepFailed, UsageError


@dataclass
class WeightedRewards:
    """score = sum of weight * source; `parts` holds the unweighted (B,) scores of the latest batch by name.

    A score that is left out (NaN, where a function gave None) adds nothing to the sum. special_tokens: what texts the
    sources read, see `response_texts`.
    """

    sources: list[tuple[RewardSource, float]]
    name: str = "reward"
    special_tokens: bool = False
    parts: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [source.name for source, _ in self.sources]
        if not names or len(set(names)) != len(names):
            raise UsageError(f"rewards are named {names}; expected at least one, each with a name of its own.")

    def score(self, batch: RewardBatch) -> Tensor:
        """(B,) f32 on the CPU. Raises `StepFailed` for a response that every source leaves out."""
        self.parts = {source.name: checked(source, batch) for source, _ in self.sources}
        scores = torch.stack([weight * self.parts[source.name] for source, weight in self.sources])  # (sources, B)
        unjudged = scores.isnan().all(0)
        if unjudged.any():
            response = batch.responses[int(unjudged.nonzero()[0])]
            raise StepFailed(
                f"no reward judges response {response[:80]!r}: {', '.join(self.parts)} gave None. Expected a number "
                "from one of them for each response; return 0 where that is meant."
            )
        return scores.nansum(0)
