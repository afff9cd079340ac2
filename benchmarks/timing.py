"""Times of several variants of one computation, interleaved so that what the machine does besides hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

Variant = Callable[[], object]
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
