"""How the rows of a run are divided: passes into steps, and the tokens of a forward and backward at once.

The rows of a step follow from `seed` and its number alone, so a resumed run needs no state of them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from rlhf_fast.runtime.config import StageConfig
from rlhf_fast.runtime.out_of_memory import is_out_of_memory

T = TypeVar("T")
logger = logging.getLogger(__name__)
FEW = 10
"""Fewer steps than these are said to be few."""
MORE_STEPS = "more num_train_epochs, or a smaller per_device_train_batch_size,"


@dataclass
class Passes:
    """Passes over `rows` rows in steps of `size`: no row is left out of a pass, whose last step may have fewer.

    Each pass has a random order of its own. groups: rows that follow one another in it, in their order (default: none
    do).
    """

    rows: int
    size: int
    seed: int
    groups: list[list[int]] | None = None
    _order: tuple[int, list[int]] = field(init=False, default=(-1, []))  # of the pass asked for last

    @property
    def steps_each(self) -> int:
        """Steps of one pass."""
        return -(-self.rows // self.size)

    def steps(self, passes: float) -> int:
        """Steps of so many passes, rounded up."""
        return max(1, round_up(passes * self.steps_each))

    def step(self, index: int) -> list[int]:
        """The rows of step `index` (from 0)."""
        number, place = divmod(index, self.steps_each)
        if self._order[0] != number:
            self._order = (number, self._shuffled(number))
        return self._order[1][place * self.size : (place + 1) * self.size]

    def describe(self, passes: float, noun: str = "rows") -> str:
        """Steps in words: '60 rows are 4 steps of 16'."""
        steps, own, what = self.steps(passes), self.steps_each, f"{self.rows:,} {noun}"
        if passes != 1:
            what = f"{passes:g} passes over {what}"
        last = self.rows - (own - 1) * self.size
        text = f"{what} are {steps:,} step{'s' * (steps > 1)} of {min(self.size, self.rows):,}"
        if own > 1 and last < self.size and steps >= own:
            text += f" (the last of a pass: {last:,})"
        return text

    def _shuffled(self, number: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        if self.groups is None:
            return torch.randperm(self.rows, generator=generator).tolist()
        order = torch.randperm(len(self.groups), generator=generator).tolist()
        return [row for group in order for row in self.groups[group]]


def too_few(steps: int, more: str) -> str:
    """A hint where a run has few steps; more: the fields that make more of them."""
    return f"{steps} step{'s' * (steps > 1)} can change little: {more} makes more." if steps < FEW else ""


def round_up(number: float) -> int:
    """The next whole number; what floating-point rounding put a hair above one counts as that one."""
    return math.ceil(number - 1e-9 * max(1.0, abs(number)))


@dataclass
class Budget:
    """`tokens` of a micro-batch. `may_halve`: halve them, for the rest of the run, where they do not fit."""

    tokens: int
    may_halve: bool

    @classmethod
    def of(cls, config: StageConfig) -> Budget:
        return cls(config.max_tokens_per_micro_batch, config.auto_find_batch_size)

    def run(self, work: Callable[[], T], undo: Callable[[], None]) -> T:
        """What `work`, which reads `tokens`, returns. Where it runs out of memory and may halve them, `undo` takes back
        what it left, and it runs again."""
        while True:
            try:
                return work()
            except (MemoryError, RuntimeError) as error:
                if not (is_out_of_memory(error) and self.may_halve and self.tokens > 1):
                    raise
                reason = str(error).split("\n")[0] or type(error).__name__
            undo()  # out here, where the error no longer keeps the activations alive
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            logger.warning("out of memory with %d tokens a micro-batch: half from now on (%s)", self.tokens, reason)
            self.tokens //= 2

    def metrics(self) -> dict[str, float]:
        """The tokens, where they may change."""
        return {"max_tokens_per_micro_batch": float(self.tokens)} if self.may_halve else {}
