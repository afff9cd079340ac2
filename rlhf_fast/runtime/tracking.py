"""What a run leaves and shows while it goes on.

Tracker        one JSON line a step in `metrics.jsonl`, and progress: a bar on a terminal, plain lines elsewhere
activity       a spinner (or one line) for work that has no steps to count
say_start      the line before the first step: rows, steps, what is trained, where

Everything shown goes to stderr, so that stdout holds results only; of several processes, process 0 shows.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from rlhf_fast.runtime.distributed import is_main
from rlhf_fast.runtime.files import Lines
from rlhf_fast.runtime.memory import peak_bytes
from rlhf_fast.runtime.shown import notices

METRICS_FILE = "metrics.jsonl"
EVERY = 60  # seconds without a plain line after which a step gets one


class Tracker:
    """Writes one JSON line a step to `metrics.jsonl` and shows progress with the chosen metrics.

    Use it as a context manager; `total` is the number of steps, `shown` maps a metric to its short name. On a terminal
    progress is a bar; elsewhere a line after each tenth of the steps, after a minute without one, and after the last.
    After the first step a line says the memory at its peak on `device` and the time that the others will take; `quiet`
    shows nothing of all this. After `done` steps of an earlier process, its rows are kept and its clock goes on. Of
    several processes only process 0 writes and shows.
    """

    def __init__(
        self, folder: str | Path, stage: str, total: int, shown: dict[str, str], *,
        done: int = 0, quiet: bool = False, device: torch.device | None = None,
    ) -> None:  # fmt: skip
        self.path = Path(folder) / METRICS_FILE
        self.file: Lines | None = None
        self.stage, self.total, self.shown, self.done, self.device = stage, total, shown, done, device
        self.shows = not quiet and is_main()
        self.started = time.perf_counter() - (read_metrics(folder)[-1]["seconds"] if done and is_main() else 0)
        self.progress: Progress | None = self._bar() if self.shows and on_terminal() else None

    def __enter__(self) -> Tracker:
        if is_main():
            self.file = Lines(self.path, keep=self.path.stat().st_size if self.done else 0)
        if self.progress is not None:
            self.progress.start()
        self.began = self.last_line = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.progress is not None:
            self.progress.stop()
        if self.file is not None:
            self.file.close()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of a step (1-based; 0 is before the first). Raises `NotWritten` if the disk refuses.

        One that is not finite is null, as JSON has no other word.
        """
        now = time.perf_counter()
        record: dict[str, float | None] = {"step": step, "seconds": round(now - self.started, 3)}
        record |= {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        if self.file is not None:
            self.file.append([record])
        if step == self.done:
            self.began = now  # what came before the steps says nothing of how long they take
        if self.shows:
            self._show(step, now, [f"{s} {metrics[name]:.3g}" for name, s in self.shown.items() if name in metrics])

    def _show(self, step: int, now: float, texts: list[str]) -> None:
        taken = step - self.done
        each = (now - self.began) / taken if taken else None
        left = duration(each * (self.total - step)) if each is not None and step < self.total else ""
        if self.progress is not None:
            self.progress.update(self.progress.task_ids[0], completed=step, metrics="  ".join(texts), left=left)
        tenth = 10 * step // self.total > 10 * (step - 1) // self.total or now - self.last_line >= EVERY
        if self.progress is None and (tenth or step in (0, self.total)):
            self.last_line = now
            clock = f"after {duration(now - self.started)}" + (f", {left} left" if left else "")
            self._line(f"{self.stage} {step} of {self.total} {clock}: {', '.join(texts)}")
        if taken == 1:
            first, rest = f"{self.stage}: the first step took {duration(each or 0.0)}", self.total - step
            self._line(
                f"{first}; memory so far: {describe_memory(self.device)}"
                + (f"; about {left} for the other {rest}" if rest else "")
            )

    def _line(self, text: str) -> None:
        if self.progress is not None:
            self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)  # above the bar
        else:
            _print(text)

    def _bar(self) -> Progress:
        console = Console(stderr=True)
        progress = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(24 if console.width >= 100 else 10),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"), _Clock(self.started),
            TextColumn("{task.fields[metrics]}"), console=console,
        )  # fmt: skip
        progress.add_task(self.stage, total=self.total, completed=self.done, metrics="", left="")
        return progress


class _Clock(ProgressColumn):
    """The time since the run began, and what is left by the mean time of the steps that this process took.

    rich's own estimate shows nothing while steps are slow or few."""

    def __init__(self, started: float) -> None:
        super().__init__()
        self.started = started

    def render(self, task: Task) -> Text:
        left = f", {task.fields['left']} left" if task.fields["left"] else ""
        return Text(duration(time.perf_counter() - self.started) + left, no_wrap=True)


def read_metrics(folder: str | Path) -> list[dict[str, float]]:
    """The rows that a `Tracker` wrote; null is NaN."""
    rows = [json.loads(line) for line in (Path(folder) / METRICS_FILE).read_text().splitlines()]
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]


@contextmanager
def activity(text: str, *, quiet: bool = False) -> Iterator[None]:
    """Show `text` for work that has no steps to count: on a terminal with a spinner and the time it has taken."""
    if quiet or not is_main():
        yield
    elif not on_terminal():
        _print(text)
        yield
    else:
        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        with Progress(*columns, transient=True, console=Console(stderr=True)) as progress:
            progress.add_task(text, total=None)
            yield


def describe_memory(device: torch.device | None) -> str:
    """The most that this process has held, in words."""
    return f"{peak_bytes(device) / 1e9:.2f} GB at most"


def say_start(stage: str, facts: Mapping[str, str], hint: str = "") -> None:
    """One line before the first step of what the run is (facts in words, by topic: its page keeps them), and a hint."""
    notices.info("%s: %s", stage, "; ".join(facts.values()))
    if hint:
        notices.info("%s", hint)


def on_terminal() -> bool:
    """Whether stderr can show lines that change."""
    console = Console(stderr=True)
    return (sys.stderr.isatty() and not console.is_dumb_terminal) or console.is_jupyter


def duration(seconds: float) -> str:
    """h:mm:ss, days before it; tenths of a second below 10 s."""
    return f"{seconds:.1f} s" if seconds < 9.95 else str(timedelta(seconds=round(seconds)))


def _print(text: str) -> None:
    with suppress(BrokenPipeError):  # nobody reads on: no reason to lose the run
        print(text, file=sys.stderr, flush=True)
