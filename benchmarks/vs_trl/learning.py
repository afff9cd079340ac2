"""What PPO learns in TRL 1.12 and in rlhf_fast: the same small task, from the same models, over several seeds.

    python -m benchmarks.vs_trl.learning                 # 50 iterations, 3 seeds, every critic
    python -m benchmarks.vs_trl.learning --iterations 2 --seeds 1

The task is in `benchmarks.vs_trl.task`. Both sides train LoRA of rank 16 in float32 with the same learning rate, KL
coefficient and batch, each with its own defaults for the rest. Prints what each row ends with, the mean over the last
ten iterations, and writes curves.csv and learning.png: the mean over seeds, and the range of the seeds around it.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import environments
from benchmarks.vs_trl.jobs import Iteration, Job
from benchmarks.vs_trl.report import Run, of_side, sides
from benchmarks.vs_trl.sides import PACKAGES, SIDES, TRL, Side, run
from benchmarks.vs_trl.task import make_task, prompts

ROWS = {name: side for name, side in SIDES.items() if "micro-batch 4" not in name} | {
    "rlhf_fast, full critic": Side("benchmarks.vs_trl.trainer", "full"),  # from the classifier, as TRL's
}
BATCH, RESPONSE_LENGTH, LEARNING_RATE = 32, 16, 1e-3
LAST = 10  # iterations that a row's result is the mean of
CURVES = {"score": "mean score of the responses", "kl": "KL to the reference, nats a response"}


def main() -> None:
    given = parse()
    given.output_dir.mkdir(parents=True, exist_ok=True)
    model, classifier = make_task(given.output_dir / "task")
    python = environments.make(TRL, PACKAGES) if any(row.startswith("TRL") for row in given.sides) else Path()
    runs = []
    for seed in range(given.seeds):
        for name in given.sides:
            side = ROWS[name]
            job = Job(
                str(model.resolve()), str(classifier.resolve()), prompts(BATCH), RESPONSE_LENGTH, True, 4, 0,
                given.iterations, side.critic, side.micro_batch, "float32", LEARNING_RATE, seed,
            )  # fmt: skip
            runs.append(run(name, side, job, seed, given.output_dir, python))
    write(runs, given.output_dir)
    Console(width=150).print(table(runs))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", choices=ROWS, default=list(ROWS), help="The rows.", metavar="ROW")
    parser.add_argument("--iterations", type=int, default=50, help="Iterations of a run.")
    parser.add_argument("--seeds", type=int, default=3, help="Runs of a row.")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/learning"), help="Models, curves and the plot.")
    return parser.parse_args()


def last(iterations: Sequence[Iteration], name: str) -> float:
    return statistics.fmean(getattr(i, name) for i in iterations[-LAST:])


def table(runs: list[Run]) -> Table:
    """Per row: mean over the seeds, and their range, of where they end; and the median time of an iteration."""
    shown = Table("row", "score", "KL, nats", "iteration, s", title=f"mean of the last {LAST} iterations, over seeds")
    for name in sides(runs):
        of_row = of_side(runs, name)
        ends = {curve: [last(run.iterations, curve) for run in of_row] for curve in CURVES}
        cells = [f"{statistics.fmean(x):.3f} ({min(x):.3f} to {max(x):.3f})" for x in ends.values()]
        shown.add_row(name, *cells, f"{statistics.median(run.seconds('seconds') for run in of_row):.2f}")
    return shown


def write(runs: list[Run], folder: Path) -> None:
    """curves.csv and learning.png."""
    with (folder / "curves.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "seed", "iteration", *CURVES, "seconds"])
        for one in runs:
            for i, found in enumerate(one.iterations):
                writer.writerow([one.side, one.round, i, *(getattr(found, c) for c in CURVES), found.seconds])
    plot(runs, folder / "learning.png")


def plot(runs: list[Run], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4))
    colors = dict(zip(sides(runs), ("#8c8c8c", "#c9a227", "#2f6f4f", "#b0413e", "#3b6fb6", "#5b3f8c"), strict=False))
    for (curve, label), axis in zip(CURVES.items(), axes, strict=True):
        for name in sides(runs):
            values = [[getattr(i, curve) for i in one.iterations] for one in of_side(runs, name)]
            steps = range(1, len(values[0]) + 1)
            by_step = list(zip(*values, strict=True))
            axis.plot(steps, [statistics.fmean(x) for x in by_step], color=colors[name], label=name, linewidth=1.4)
            axis.fill_between(steps, [*map(min, by_step)], [*map(max, by_step)], color=colors[name], alpha=0.15)
        axis.set(xlabel="iteration", ylabel=label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
