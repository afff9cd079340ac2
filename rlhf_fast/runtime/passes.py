"""How passes over the rows of a run are divided into steps, and in which order a pass visits them.

The rows of a step follow from `seed` and its number alone, so a resumed run needs no state of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

FEW = 10
"""Fewer steps than these are said to be few."""
MORE_STEPS = "more num_train_epochs, or a smaller per_device_train_batch_size,"
"""What `too_few` says of stages that take passes over rows."""


@dataclass
class Passes:
    """Passes over `rows` rows in steps of `size`: no row is left out of a pass, whose last step may have fewer.

    Each pass has a random order of its own. groups: rows that stay side by side in every pass, in their order, as the
    comparisons of one prompt do (default: each row is on its own).
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
        if self.groups is None:
            return pass_order(self.rows, self.seed, number)
        return [row for group in pass_order(len(self.groups), self.seed, number) for row in self.groups[group]]


def pass_order(rows: int, seed: int, number: int) -> list[int]:
    """The order of `rows` rows in pass `number` (from 0)."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed * 1_000_003 + number)).tolist()


def too_few(steps: int, more: str) -> str:
    """A hint where a run has few steps; more: the fields that make more of them."""
    return f"{steps} step{'s' * (steps > 1)} can change little: {more} makes more." if steps < FEW else ""


def round_up(number: float) -> int:
    """The next whole number; what floating-point rounding put a hair above one counts as that one."""
    return math.ceil(number - 1e-9 * max(1.0, abs(number)))
