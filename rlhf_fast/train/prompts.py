"""The prompts of a PPO run, tokenised once, and the order in which they are visited."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Prompts:
    """Token ids and text of each prompt, and the dataset's other columns for reward functions."""

    ids: list[list[int]]
    texts: list[str]
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, iteration: int, size: int, seed: int) -> list[int]:
        """Rows of batch `iteration`: passes over all prompts, each pass in an order of its own."""
        rows = []
        for position in range(iteration * size, (iteration + 1) * size):
            epoch, index = divmod(position, len(self))
            rows.append(self._order(epoch, seed)[index])
        return rows

    def _order(self, epoch: int, seed: int) -> list[int]:
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()
