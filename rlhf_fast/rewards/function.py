"""A Python function as a reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_fast.rewards.source import RewardBatch
from rlhf_fast.runtime.errors import UsageError

RewardFunction = Callable[..., Sequence[float]]


@dataclass
class FunctionReward:
    """Calls `function(prompts, responses, **columns)`, which returns one number for each response."""

    name: str
    function: RewardFunction

    def score(self, batch: RewardBatch) -> Tensor:
        try:
            scores: Any = self.function(batch.prompts, batch.responses, **batch.columns)
            return torch.as_tensor(scores, dtype=torch.float32)
        except Exception as error:
            raise UsageError(
                f"the reward function {self.name!r} failed: {type(error).__name__}: {error}. It is called as "
                "function(prompts, responses, **columns) and returns a list of numbers."
            ) from error
