"""What the machine can do at most: the rate of a large product and of a large copy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

SIDE = 2048  # of the product of two square matrices
COPIED = 1 << 25  # floats
ROUNDS = 5


@dataclass(frozen=True)
class Rates:
    """Operations and bytes a second."""

    flops: float
    bytes: float

    def least_seconds(self, flops: float, read: float) -> float:
        """The time that so many operations over so many bytes take at least."""
        return max(flops / self.flops, read / self.bytes)


def measure_rates(dtype: torch.dtype, device: torch.device | str = "cpu") -> Rates:
    """Medians of a few products in `dtype` and copies on `device`; takes about a second on a CPU."""
    a, b = torch.randn(2, SIDE, SIDE, device=device).to(dtype)
    source, target = torch.ones(2, COPIED, device=device)
    product = torch.empty_like(a)
    times = [(_seconds(lambda: torch.mm(a, b, out=product)), _seconds(lambda: target.copy_(source)))
             for _ in range(ROUNDS + 1)][1:]  # fmt: skip
    mm, copy = (statistics.median(column) for column in zip(*times, strict=True))
    return Rates(2 * SIDE**3 / mm, 2 * 4 * COPIED / copy)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
