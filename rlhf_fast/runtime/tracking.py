"""Metrics on disk and progress on the terminal."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlhf_fast.runtime.distributed import is_main
from rlhf_fast.runtime.lines import Lines

METRICS_FILE = "metrics.jsonl"


class Tracker:
    """Writes one JSON line a step to `metrics.jsonl` and shows a progress bar with the chosen metrics.

    Use it as a context manager; `total` is the number of steps, `shown` maps a metric to its short name in the bar.
    After `done` steps of an earlier process, its rows are kept and its clock goes on. Of several processes only
    process 0 writes and shows.
    """

    def __init__(
        self, folder: str | Path, stage: str, total: int, shown: dict[str, str], *, done: int = 0, quiet: bool = False
    ) -> None:
        self.path = Path(folder) / METRICS_FILE
        self.file: Lines | None = None
        self.shown = shown
        self.done = done
        self.started = time.perf_counter() - (read_metrics(folder)[-1]["seconds"] if done and is_main() else 0)
        self.progress = Progress(
            TextColumn("[bold]{task.description:<14}"), BarColumn(24), TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[metrics]}"),
            disable=quiet or not is_main(),
        )  # fmt: skip
        self.task = self.progress.add_task(stage, total=total, completed=done, metrics="")

    def __enter__(self) -> Tracker:
        if is_main():
            self.file = Lines(self.path, keep=self.path.stat().st_size if self.done else 0)
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        if self.file is not None:
            self.file.close()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of a step (1-based; 0 is before the first). Raises `NotWritten` if the disk refuses.

        One that is not finite is null, as JSON has no other word.
        """
        record: dict[str, float | None] = {"step": step, "seconds": round(time.perf_counter() - self.started, 3)}
        record |= {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        if self.file is not None:
            self.file.append([record])
        text = "  ".join(f"{short} {metrics[name]:.3g}" for name, short in self.shown.items() if name in metrics)
        self.progress.update(self.task, completed=step, metrics=text)


def read_metrics(folder: str | Path) -> list[dict[str, float]]:
    """The rows that a `Tracker` wrote; null is NaN."""
    rows = [json.loads(line) for line in (Path(folder) / METRICS_FILE).read_text().splitlines()]
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]


@contextmanager
def activity(text: str, *, quiet: bool = False) -> Iterator[None]:
    """Show `text` with a spinner and the time it has taken, for work that has no steps to count."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, transient=True, disable=quiet or not is_main()) as progress:
        progress.add_task(text, total=None)
        yield
