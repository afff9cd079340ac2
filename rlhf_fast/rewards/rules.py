"""Ready-made rule rewards."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_fast.rewards.source import RewardBatch
from rlhf_fast.runtime.errors import UsageError


@dataclass
class ForbiddenPhrases:
    """-1 for each forbidden phrase that a response contains (whole words, any case), else 0."""

    phrases: list[str]
    name: str = "forbidden_phrases"

    def __post_init__(self) -> None:
        if not self.phrases or not all(phrase.strip() for phrase in self.phrases):
            raise UsageError(f"forbidden phrases are {self.phrases!r}; expected a list of non-empty phrases.")
        self.patterns = [re.compile(rf"(?<!\w){re.escape(p)}(?!\w)", re.IGNORECASE) for p in self.phrases]

    def score(self, batch: RewardBatch) -> Tensor:
        return torch.tensor([-float(sum(bool(p.search(r)) for p in self.patterns)) for r in batch.responses])


@dataclass
class LengthWithin:
    """0 for a response of `least` to `most` words; minus the share by which it misses the nearer bound otherwise."""

    least: int
    most: int
    name: str = "length"

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most or self.most == 0:
            raise UsageError(
                f"length bounds are {self.least}..{self.most} words; expected 0 <= least <= most, most > 0."
            )

    def score(self, batch: RewardBatch) -> Tensor:
        return torch.tensor([-self._miss(len(response.split())) for response in batch.responses])

    def _miss(self, words: int) -> float:
        if words < self.least:
            return (self.least - words) / self.least
        return max(0, words - self.most) / self.most
