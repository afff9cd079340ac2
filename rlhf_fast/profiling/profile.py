"""A profile of a run: seconds of each phase beside its floor, and a trace of one iteration."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from rlhf_fast.profiling.rates import Rates, measure_rates, wait
from rlhf_fast.runtime import phases
from rlhf_fast.runtime.files import write_into

PROFILE_FILE = "profile.json"
TRACE_FILE = "trace.json.gz"


@dataclass
class Total:
    """What one phase took in all."""

    times: int = 0
    seconds: float = 0.0
    floor: float = 0.0  # the least that the products it told of can take


class Profile:
    """Adds up phases. The first one to come again begins a second iteration, which is traced, if `trace` says so.

    A phase on a CUDA `device` begins and ends when all that was asked of it is done: what a phase leaves to do is its
    own time, not that of the next.
    """

    def __init__(self, rates: Rates, device: torch.device | str = "cpu", *, trace: bool = True) -> None:
        self.rates, self.device, self.trace = rates, torch.device(device), trace
        self.totals: dict[str, Total] = {}
        self.first: str | None = None
        self.current: str | None = None
        self.tracer: profile | None = None
        self.traced = False

    def started(self, phase: str) -> None:
        self.first = self.first or phase
        if phase == self.first:
            self._turn(self.totals[phase].times if phase in self.totals else 0)
        wait(self.device)
        self.current, self.begin = phase, time.perf_counter()

    def ended(self, phase: str) -> None:
        wait(self.device)
        total = self.totals.setdefault(phase, Total())
        total.times += 1
        total.seconds += time.perf_counter() - self.begin
        self.current = None

    def works(self, flops: float, read: float) -> None:
        if self.current is not None:
            self.totals.setdefault(self.current, Total()).floor += self.rates.least_seconds(flops, read)

    def stop(self) -> None:
        """End the trace, where one is going on."""
        if self.tracer is not None and not self.traced:
            self.tracer.__exit__(None, None, None)
            self.traced = True

    def _turn(self, iteration: int) -> None:
        if iteration == 1 and self.trace:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self.tracer = profile(activities=activities)
            self.tracer.__enter__()
        elif iteration == 2:
            self.stop()

    def table(self) -> Table:
        """One row a phase."""
        whole = sum(total.seconds for total in self.totals.values())
        shown = Table("phase", "seconds", "share", "floor, seconds", "floor / time", title="Where the time went")
        for name, total in self.totals.items():
            share = f"{total.seconds / whole:.0%}"
            ratio = f"{total.floor / total.seconds:.0%}"
            shown.add_row(name, f"{total.seconds:.1f}", share, f"{total.floor:.1f}", ratio)
        floor = sum(total.floor for total in self.totals.values())
        shown.add_row("all", f"{whole:.1f}", "100%", f"{floor:.1f}", f"{floor / whole:.0%}", style="bold")
        return shown

    def write(self, folder: Path) -> None:
        """`profile.json`, and the trace of the second iteration where there was one, each whole. Raises `OSError` if
        the disk refuses."""
        facts = {"rates": asdict(self.rates), "phases": {name: asdict(total) for name, total in self.totals.items()}}

        def fill(temporary: Path) -> None:
            (temporary / PROFILE_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            if self.tracer is not None:
                self.tracer.export_chrome_trace(str(temporary / TRACE_FILE))
                (temporary / TRACE_FILE).stat()  # the tracer raises nothing itself

        write_into(folder, fill, name="profile")


@contextmanager
def profiled(dtype: torch.dtype, device: torch.device, *, trace: bool = True) -> Iterator[Profile]:
    """Profile what runs inside; then print the table.

    The floor of a phase is the time of its products at the rates of a large product and a large copy, measured first.
    """
    result = Profile(measure_rates(dtype, device), device, trace=trace)
    try:
        with phases.listen(result):
            yield result
    finally:
        result.stop()
    Console().print(result.table())
