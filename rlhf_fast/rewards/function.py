"""A Python function as a reward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_fast.rewards.source import RewardBatch
from rlhf_fast.runtime.errors import UsageError

RewardFunction = Callable[..., Sequence[float]]
_CALL = "It is called as function(prompts, responses, **columns) and returns a list of numbers."


@dataclass
class FunctionReward:
    """Calls `function(prompts, responses, **columns)`, which returns one number for each response."""

    name: str
    function: RewardFunction

    def check_signature(self, columns: Iterable[str]) -> None:
        """Raise `UsageError` if the function could not be called with these columns; it is not called."""
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError):  # some built-ins do not tell
            return
        names = list(columns)
        try:
            signature.bind([], [], **{name: [] for name in names})
        except TypeError as error:
            given = f" The data's columns are {', '.join(names)}." if names else ""
            raise UsageError(
                f"the reward function {self.name!r} cannot be called: {error}. {_CALL}{given} Add **columns to take "
                "columns that it does not use; rename a column called prompts or responses."
            ) from error

    def score(self, batch: RewardBatch) -> Tensor:
        try:
            scores: Any = self.function(batch.prompts, batch.responses, **batch.columns)
            return torch.as_tensor(scores, dtype=torch.float32).detach().cpu()
        except Exception as error:
            raise UsageError(
                f"the reward function {self.name!r} failed: {type(error).__name__}: {error}. {_CALL}"
            ) from error
