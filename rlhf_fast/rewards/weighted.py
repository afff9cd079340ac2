"""Several rewards side by side: one weighted sum for PPO, each part kept under its own name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_fast.rewards.source import RewardBatch, RewardSource, checked
from rlhf_fast.runtime.distributed import gather
from rlhf_fast.runtime.errors import StepFailed, UsageError


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
