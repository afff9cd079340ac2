"""What the machine can do at most, measured beside what is compared with it: a large product and a large copy."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.timing import Variant
from rlhf_fast.profiling.rates import SIDE, Rates

COPIED = 1 << 26  # floats


@dataclass(frozen=True)
class Work:
    """Operations that a computation cannot do without: floating point, and bytes read and written."""

    flops: float
    bytes: float


def variants(device: str = "cpu") -> dict[str, Variant]:
    """The two computations that show the limits, to interleave with others."""
    side = SIDE[device]
    a, b = torch.randn(2, side, side, device=device).bfloat16()
    product = torch.empty_like(a)
    source, target = torch.ones(2, COPIED, device=device)
    return {"product": lambda: torch.mm(a, b, out=product), "copy": lambda: target.copy_(source)}


def least_seconds(work: Work, product: float, copy: float, device: str = "cpu") -> float:
    """The time that `work` takes at the rates of a product and a copy that took so many seconds."""
    return Rates(2 * SIDE[device] ** 3 / product, 2 * 4 * COPIED / copy).least_seconds(work.flops, work.bytes)
