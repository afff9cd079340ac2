"""What the machine can do at most: the rate of a large product and of a large copy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rlhf_fast.runtime.memory import free_bytes

SIDE = {"cpu": 2048, "cuda": 8192}  # of the product of two square matrices: a card is not full with fewer
COPIED = {"cpu": 1 << 25, "cuda": 1 << 28}  # floats: more than any cache holds
ROOM = 4  # what is measured takes at most this part of the free memory
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
    """Medians of a few products in `dtype` and copies on `device`, of the sizes of SIDE and COPIED or as large as fit;
    takes about a second on a CPU."""
    device = torch.device(device)
    side, copied = sizes(device, dtype.itemsize, free_bytes(device))
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    mm = _median_seconds(lambda: torch.mm(a, b, out=product), device)
    source, target = torch.ones(2, copied, device=device)
    copy = _median_seconds(lambda: target.copy_(source), device)
    return Rates(2 * side**3 / mm, 2 * 4 * copied / copy)


def sizes(device: torch.device, itemsize: int, free: int) -> tuple[int, int]:
    """Side of the product and floats of the copy: halved until each fits into a ROOM-th of `free` bytes."""
    side, copied = SIDE[device.type], COPIED[device.type]
    while side > 1 and side * side * (4 + 3 * itemsize) * ROOM > free:
        side //= 2
    while copied > 1 and 2 * 4 * copied * ROOM > free:
        copied //= 2
    return side, copied


def wait(device: torch.device) -> None:
    """Until all that was asked of the device is done; work on a CPU is done when it returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _median_seconds(run: Callable[[], object], device: torch.device) -> float:
    return statistics.median([_seconds(run, device) for _ in range(ROUNDS + 1)][1:])


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start
