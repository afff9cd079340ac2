"""Tables, files and a plot of runs of the same job."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from benchmarks.vs_trl.jobs import PHASES, Iteration
from rlhf_fast.bench.timing import median_ratio


@dataclass(frozen=True)
class Run:
    """What one process reported."""

    side: str
    round: int
    iterations: list[Iteration]
    peak_bytes: int
    versions: dict[str, str]

    @classmethod
    def read(cls, path: Path, side: str, round_: int) -> Run:
        found = json.loads(path.read_text())
        iterations = [Iteration(**iteration) for iteration in found["iterations"]]
        return cls(side, round_, iterations, found["peak_bytes"], found["versions"])

    def seconds(self, phase: str) -> float:
        """Median over the iterations of a phase, of all together ("seconds"), or of those of all cores ("cpu")."""
        return statistics.median(getattr(iteration, phase) for iteration in self.iterations)

    @property
    def rate(self) -> float:
        """Response tokens sampled, scored and trained on, in a second."""
        return sum(i.tokens for i in self.iterations) / sum(i.seconds for i in self.iterations)


Quantity = Callable[[Run], float]
QUANTITIES: dict[str, Quantity] = {
    **{f"{phase}, s": lambda run, phase=phase: run.seconds(phase) for phase in PHASES},  # type: ignore[misc]
    "iteration, s": lambda run: run.seconds("seconds"),
    "CPU, s": lambda run: run.seconds("cpu"),
    "tokens/s": lambda run: run.rate,
    "peak, GiB": lambda run: run.peak_bytes / 2**30,
}


def of_side(runs: list[Run], side: str) -> list[Run]:
    return sorted((run for run in runs if run.side == side), key=lambda run: run.round)


def sides(runs: list[Run]) -> list[str]:
    return list(dict.fromkeys(run.side for run in runs))


def is_trl(side: str) -> bool:
    return side.startswith("TRL")


def median(runs: list[Run], side: str, quantity: Quantity) -> float:
    """Over the rounds."""
    return statistics.median(map(quantity, of_side(runs, side)))


def best_trl(runs: list[Run]) -> str | None:
    """The row of TRL whose iteration is the fastest; None where there is no row of it."""
    candidates = [side for side in sides(runs) if is_trl(side)]
    return min(candidates, key=lambda side: median(runs, side, QUANTITIES["iteration, s"]), default=None)


def gain(runs: list[Run], trl: str, ours: str, name: str) -> float:
    """How many times better `ours` is, above 1 where it is: the median of the ratios within a round."""
    quantity = QUANTITIES[name]
    theirs, own = ([quantity(run) for run in of_side(runs, side)] for side in (trl, ours))
    return median_ratio(own, theirs) if name == "tokens/s" else median_ratio(theirs, own)


def tables(runs: list[Run], title: str) -> list[Table]:
    """What each row took and, where both libraries ran, how many times less that of ours is."""
    took = Table("row", *QUANTITIES, title=title)
    for side in sides(runs):
        took.add_row(side, *(f"{median(runs, side, quantity):.2f}" for quantity in QUANTITIES.values()))
    trl = best_trl(runs)
    ours = [side for side in sides(runs) if not is_trl(side)]
    if trl is None or not ours:
        return [took]
    names = [name.partition(",")[0] for name in QUANTITIES]
    times = Table("row", *names, title=f"{title}: times better than {trl}")
    for side in ours:
        times.add_row(side, *(f"{gain(runs, trl, side, name):.2f}" for name in QUANTITIES))
    return [took, times]


def write(runs: list[Run], folder: Path, conditions: str) -> None:
    """The raw numbers as runs.json and runs.csv, and phases.png."""
    raw = {"conditions": conditions, "runs": [asdict(run) for run in runs]}
    (folder / "runs.json").write_text(json.dumps(raw, indent=2) + "\n")
    with (folder / "runs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "round", "iteration", *PHASES, "cpu", "tokens", "peak_bytes"])
        for run in runs:
            for i, found in enumerate(run.iterations):
                phases = [getattr(found, phase) for phase in PHASES]
                writer.writerow([run.side, run.round, i, *phases, found.cpu, found.tokens, run.peak_bytes])
    plot(runs, folder / "phases.png", conditions.partition(":")[0])


def plot(runs: list[Run], path: Path, title: str) -> None:
    """One bar a row for the time, a part of it a phase, and one for the peak of memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = sides(runs)[::-1]
    figure, (time, memory) = plt.subplots(1, 2, figsize=(12, 1.2 + 0.45 * len(names)), sharey=True)
    left = [0.0] * len(names)
    for phase, color in zip(PHASES, ("#2f6f4f", "#b8c4bd", "#c9a227"), strict=True):
        width = [median(runs, name, QUANTITIES[f"{phase}, s"]) for name in names]
        time.barh(names, width, left=left, color=color, label=phase)
        left = [a + b for a, b in zip(left, width, strict=True)]
    bars = memory.barh(names, [median(runs, name, QUANTITIES["peak, GiB"]) for name in names], color="#b8c4bd")
    memory.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    time.set(xlabel="seconds an iteration", title=title)
    memory.set(xlabel="peak resident memory, GiB")
    time.legend(frameon=False, fontsize=8)
    for axis in (time, memory):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
