"""The kernels beside their limits and beside what people use in their place.

    python -m benchmarks.run                                   # every operation, the variants that are installed here
    python -m benchmarks.run --op linear_ppo_loss --peers      # with TRL and Liger, in an environment of its own
    python -m benchmarks.run --csv kernels.csv --plots docs/images

All variants of a case, the bare products of its shape and the two computations that show the machine's limits are
interleaved in one process. A ratio is the median of the ratios within a round.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import limits, peers
from benchmarks.cases import BACKENDS, OPERATIONS, Case, cases
from benchmarks.rows import Row
from benchmarks.timing import interleave, median_ratio


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", nargs="+", choices=OPERATIONS, default=list(OPERATIONS), help="Operations to measure.")
    parser.add_argument("--rounds", type=int, default=7, help="Rounds; each runs every variant once.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="Threads of torch and kernels.")
    parser.add_argument("--device", choices=BACKENDS, default="cpu", help="Where the tensors are.")
    parser.add_argument("--peers", action="store_true", help="Run in .venv-peers, which is made where it is missing.")
    parser.add_argument("--csv", type=Path, help="Write the rows there.")
    parser.add_argument("--plots", type=Path, help="Write a plot for each operation into this folder.")
    given = parser.parse_args()
    if given.peers:
        return peers.run_again("benchmarks.run", [word for word in sys.argv[1:] if word != "--peers"])
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    print(machine(given.threads, given.device))
    rows = []
    for op in given.op:
        for case in cases(op, given.device):
            rows += measure(case, given.rounds, given.device)
        Console(width=140).print(table([row for row in rows if row.op == op]))
    if given.csv:
        write_csv(rows, given.csv)
    if given.plots:
        from benchmarks.plots import plot_all

        plot_all(rows, given.plots)
    return 0


def measure(case: Case, rounds: int, device: str = "cpu") -> list[Row]:
    """Interleave everything that belongs to a case; a row for each variant."""
    ours = BACKENDS[device][0]
    floor = {} if case.floor is None else {"floor": case.floor}
    times = interleave(case.variants | floor | limits.variants(device), rounds)
    least = [
        limits.least_seconds(case.work, *pair, device) for pair in zip(times["product"], times["copy"], strict=True)
    ]
    return [
        Row(
            case.op,
            case.shape,
            name,
            median_ratio(times[name], times[ours]),
            median_ratio(times[name], times["floor"]) if floor else None,
            100 * median_ratio(least, times[name]),
            1e3 * statistics.median(times[name]),
            rounds,
            case.notes.get(name, ""),
        )
        for name in case.variants
    ]


def machine(threads: int, device: str) -> str:
    """What the numbers were measured on."""
    facts = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = facts[0].partition(": ")[2] if facts else platform.processor()
    gpu = f"{torch.cuda.get_device_name()}, " if device == "cuda" else ""
    load = " ".join(f"{x:.1f}" for x in os.getloadavg())
    return f"{gpu}{name}, {threads} threads, torch {torch.__version__}, Python {platform.python_version()}, load {load}"


def table(rows: list[Row]) -> Table:
    """The rows of one operation."""
    shown = Table("shape", "variant", "time / ours", "time / bare products", "% of limit", "note", title=rows[0].op)
    for row in rows:
        floor = "" if row.times_floor is None else f"{row.times_floor:.2f}"
        numbers = f"{row.times_ours:.2f}", floor, f"{row.percent_of_limit:.1f}"
        shown.add_row(row.shape, row.variant, *numbers, row.note)
    return shown


def write_csv(rows: list[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


if __name__ == "__main__":
    sys.exit(main())
