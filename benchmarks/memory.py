"""Most memory that a variant takes beyond its inputs: the peak of the resident set, each in a process of its own.

    python -m benchmarks.memory --op linear_ppo_loss

Results count as well as scratch; freed memory that torch keeps for itself does too.
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path

import torch

from rlhf_fast.bench.cases import OPERATIONS

STATUS = Path("/proc/self/status")
WARM = (64, 64, 512)  # rows, hidden size, vocabulary of a first call, which loads code and starts threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    projections = [op for op, (_, shapes) in OPERATIONS.items() if len(shapes[0]) == 3]
    parser.add_argument("--op", nargs="+", choices=projections, default=projections, help="Operations to measure.")
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for op in given.op:
        make, shapes = OPERATIONS[op]
        for shape in shapes:
            print(op, *shape)
            for name in [name for name in make(*WARM).variants if name != "torch.compile"]:
                with context.Pool(1) as pool:
                    extra = pool.apply(extra_bytes, (op, shape, name))
                print(f"  {name:<26} {extra / 2**20:8.1f} MiB")


def extra_bytes(op: str, shape: tuple[int, ...], name: str) -> int:
    """Peak of the resident set during one call, less what was resident before it."""
    make, _ = OPERATIONS[op]
    torch.set_num_threads(2)
    make(*WARM).variants[name]()
    case = make(*shape)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _kibibytes("VmRSS")
    case.variants[name]()
    return 1024 * (_kibibytes("VmHWM") - before)


def _kibibytes(field: str) -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))


if __name__ == "__main__":
    main()
