"""How time and memory of a PPO iteration grow with the length of responses and with their number.

    python -m benchmarks.scaling                      # doubles the response length, then the batch
    python -m benchmarks.scaling --critic adapter --model path/to/model

Each size runs in a process of its own, one at a time: prompts of 64 tokens, responses that fill their length, four PPO
epochs, the last of `--iterations` counts. Prints the phases of each size beside their floor, as `rlhf-fast ppo
--profile` does; then seconds, their floor (the time of the products, at the rates of a large product and a large copy
at the start) and the peak of resident memory above that of a process without models, each beside what it was at the
size before. Writes scaling.csv and scaling.png.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.vs_trl.jobs import Job, choose_prompts, peak_bytes
from benchmarks.vs_trl.models import make_classifier
from benchmarks.vs_trl.ours import CRITICS, build
from rlhf_fast.bench.machine import machine

PROMPT = 64
BATCH, LENGTH = 8, 32  # the smallest
DOUBLINGS = 4


@dataclass(frozen=True)
class Point:
    """An iteration of `batch` responses of `length` tokens."""

    batch: int
    length: int
    seconds: float
    floor: float  # seconds
    memory: float  # bytes at the peak, above those before the models are opened

    @property
    def tokens(self) -> int:
        return self.batch * (PROMPT + self.length)


def main() -> None:
    given = parse()
    if given.job:
        return measure(*given.job)
    given.output_dir.mkdir(parents=True, exist_ok=True)
    print(machine(torch.get_num_threads(), "cpu"))
    lengths = [run(given, BATCH, LENGTH << i) for i in range(DOUBLINGS)]
    batches = [lengths[0], *(run(given, BATCH << i, LENGTH) for i in range(1, DOUBLINGS))]
    write({"response length": lengths, "batch": batches}, given.output_dir)
    for name, points in (("response length", lengths), ("batch", batches)):
        Console(width=120).print(table(name, points))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--critic", choices=CRITICS, default="reference_mlp", help="The critic of the runs.")
    parser.add_argument("--model", type=Path, help="Folder of a language model. Default: the demonstration's.")
    parser.add_argument("--iterations", type=int, default=2, help="Iterations of a run; the last one counts.")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/scaling"), help="Models, numbers and the plot.")
    parser.add_argument("--job", nargs=2, type=Path, help=argparse.SUPPRESS)  # what a process of its own gets
    return parser.parse_args()


def run(given: argparse.Namespace, batch: int, length: int) -> Point:
    """One size in a process of its own."""
    from transformers import AutoTokenizer

    from rlhf_fast.demo.data import fetch_base_model

    model = given.model or fetch_base_model(given.output_dir / "base")
    classifier = make_classifier(model, given.output_dir / f"{model.resolve().name}-classifier")
    prompts = choose_prompts((PROMPT,) * batch, AutoTokenizer.from_pretrained(model), Path("/dev/null"))
    job = Job(
        str(model.resolve()), str(classifier.resolve()), prompts, length, False, 4, given.iterations - 1, 1,
        given.critic, None,
    )  # fmt: skip
    asked, result = (given.output_dir / f"{batch}x{length}.{end}.json" for end in ("job", "result"))
    job.write(asked)
    subprocess.run([sys.executable, "-m", "benchmarks.scaling", "--job", str(asked), str(result)], check=True)
    return Point(**json.loads(result.read_text()))


def measure(asked: Path, result: Path) -> None:
    """What a process of its own does: the job, and a point as JSON."""
    from rlhf_fast.profiling.profile import Profile
    from rlhf_fast.profiling.rates import measure_rates
    from rlhf_fast.runtime import phases

    job, rates = Job.read(asked), measure_rates(torch.bfloat16)
    before = psutil.Process().memory_info().rss
    ppo = build(job)
    for _ in range(job.warmup):
        ppo.step()
    profile, start = Profile(rates), time.perf_counter()
    with phases.listen(profile):
        ppo.step()
    seconds = time.perf_counter() - start
    floor = sum(total.floor for total in profile.totals.values())
    point = Point(len(job.prompts), job.response_length, seconds, floor, peak_bytes() - before)
    print(f"{point.batch} responses of {point.length} tokens")
    Console(width=120).print(profile.table())
    result.write_text(json.dumps(asdict(point)))


def table(name: str, points: Sequence[Point]) -> Table:
    """Each quantity, and times the size before it."""
    columns = ("tokens", "seconds", "floor", "memory")
    shown = Table(name, "tokens", "seconds", "floor, s", "memory, GiB", "floor / time", title=f"doubling the {name}")
    for i, point in enumerate(points):
        cells = []
        for column, unit in zip(columns, (1, 1, 1, 2**30), strict=True):
            value = getattr(point, column)
            growth = f" (x {value / getattr(points[i - 1], column):.2f})" if i else ""
            cells.append(f"{value / unit:.4g}{growth}")
        size = point.length if name == "response length" else point.batch
        shown.add_row(str(size), *cells, f"{point.floor / point.seconds:.0%}")
    return shown


def write(series: dict[str, list[Point]], folder: Path) -> None:
    """scaling.csv and scaling.png."""
    with (folder / "scaling.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["doubled", *(field.name for field in fields(Point))])
        for name, points in series.items():
            writer.writerows([name, *asdict(point).values()] for point in points)
    plot(series, folder / "scaling.png")


def plot(series: dict[str, list[Point]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
    for (name, points), color in zip(series.items(), ("#2f6f4f", "#c9a227"), strict=False):
        tokens = [p.tokens for p in points]
        axes[0].plot(tokens, [p.seconds for p in points], "o-", color=color, label=name)
        axes[1].plot(tokens, [p.memory / 2**30 for p in points], "o-", color=color, label=name)
    axes[0].set(ylabel="seconds an iteration", ylim=(0, None))
    axes[1].set(ylabel="peak memory of the run, GiB")
    axes[1].set_ylim(0, 1.25 * axes[1].get_ylim()[1])
    for axis in axes:
        axis.set(xlabel="tokens an iteration", xlim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(title="doubled", frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
