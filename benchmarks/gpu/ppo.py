"""A listener that measures the phases of a PPO run."""

from __future__ import annotations

import time

from benchmarks.gpu.bench import Bench


class Phases:
    """Seconds and peak memory of each phase of an iteration."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.found: dict[str, tuple[float, float]] = {}

    def started(self, phase: str) -> None:
        self.bench.wait()
        self.bench.reset_peak()
        self.begin = time.perf_counter()

    def ended(self, phase: str) -> None:
        self.bench.wait()
        self.found[phase] = time.perf_counter() - self.begin, self.bench.peak()

    def works(self, flops: float, read: float) -> None:
        pass

    def numbers(self) -> dict[str, float]:
        return {f"{phase}_{unit}": value for phase, pair in self.found.items()
                for unit, value in zip(("seconds", "gib"), pair, strict=True)}  # fmt: skip
