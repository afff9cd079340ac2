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
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import peers
from rlhf_fast.bench.cases import BACKENDS, OPERATIONS, cases
from rlhf_fast.bench.machine import machine
from rlhf_fast.bench.run import kernel_table
from rlhf_fast.bench.timing import Row, measure


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
            rows += measure(peers.beside(case), given.rounds, given.device)
        Console(width=140).print(kernel_table([row for row in rows if row.op == op]))
    if given.csv:
        write_csv(rows, given.csv)
    if given.plots:
        from benchmarks.plots import plot_all

        plot_all(rows, given.plots)
    return 0


def write_csv(rows: list[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


if __name__ == "__main__":
    sys.exit(main())
