"""Times of several variants of one computation, interleaved so that what the machine does besides hits all alike; and
what the machine can do at most, a large product and a large copy, measured beside them.

interleave       seconds of each variant in each round
limits           the product and the copy, as two variants more
measure          a `Row` for each variant of a case of the kernels
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from rlhf_fast.profiling.rates import SIDE, Rates

Variant = Callable[[], object]
COPIED = 1 << 26  # floats
SHORTEST = 2e-3  # seconds that one measurement takes at least, by repeating what is faster


def interleave(variants: Mapping[str, Variant], rounds: int) -> dict[str, list[float]]:
    """Seconds of one call of each variant in each round, in the order given; two calls before are not counted."""
    calls = {name: _calls(run) for name, run in variants.items()}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            times[name].append(_seconds(run, calls[name]))
    return times


def median_ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """The median over the rounds of a / b, each of one round."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


@dataclass(frozen=True)
class Work:
    """Operations that a computation cannot do without: floating point, and bytes read and written."""

    flops: float
    bytes: float


def limits(device: str = "cpu") -> dict[str, Variant]:
    """The two computations that show what the machine can do, to interleave with others."""
    side = SIDE[device]
    a, b = torch.randn(2, side, side, device=device).bfloat16()
    product = torch.empty_like(a)
    source, target = torch.ones(2, COPIED, device=device)
    return {"product": lambda: torch.mm(a, b, out=product), "copy": lambda: target.copy_(source)}


def least_seconds(work: Work, product: float, copy: float, device: str = "cpu") -> float:
    """The time that `work` takes at the rates of a product and a copy that took so many seconds."""
    return Rates(2 * SIDE[device] ** 3 / product, 2 * 4 * COPIED / copy).least_seconds(work.flops, work.bytes)


@dataclass(frozen=True)
class Case:
    """One operation at one shape; all variants compute the same but for what `notes` says.

    ours: the variant that the others are compared with; inputs: what the variants are given.
    """

    op: str
    shape: str
    work: Work
    variants: dict[str, Variant]
    ours: str
    floor: Variant | None = None  # bare products, where products are the limit
    notes: dict[str, str] = field(default_factory=dict)
    inputs: object = None


@dataclass(frozen=True)
class Row:
    """One variant of one case, as it stands in a table, a file and a plot."""

    op: str
    shape: str
    variant: str
    times_ours: float  # its time over that of the first backend, which is 1
    times_floor: float | None  # over that of bare products of the same shapes
    percent_of_limit: float  # 100: as fast as the machine's rates allow
    milliseconds: float  # median, on this machine on that day
    rounds: int
    note: str


def measure(case: Case, rounds: int, device: str = "cpu") -> list[Row]:
    """Interleave everything that belongs to a case; a row for each variant."""
    floor = {} if case.floor is None else {"floor": case.floor}
    times = interleave(case.variants | floor | limits(device), rounds)
    least = [least_seconds(case.work, *pair, device) for pair in zip(times["product"], times["copy"], strict=True)]
    return [
        Row(
            case.op,
            case.shape,
            name,
            median_ratio(times[name], times[case.ours]),
            median_ratio(times[name], times["floor"]) if floor else None,
            100 * median_ratio(least, times[name]),
            1e3 * statistics.median(times[name]),
            rounds,
            case.notes.get(name, ""),
        )
        for name in case.variants
    ]


def _calls(run: Variant) -> int:
    run()  # compiles, allocates, and meets cold caches
    return max(1, round(SHORTEST / _seconds(run, 1)))


def _seconds(run: Variant, calls: int) -> float:
    _wait()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    _wait()
    return (time.perf_counter() - start) / calls


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
