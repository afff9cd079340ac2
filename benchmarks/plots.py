"""One plot an operation: the time of each variant over that of the fastest backend of ours.

    python -m benchmarks.plots kernels.csv more.csv docs/images

draws what benchmarks.run wrote into the files.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt
from matplotlib import ticker

from rlhf_fast.bench.timing import Row

matplotlib.use("Agg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, nargs="+", help="Files that benchmarks.run wrote.")
    parser.add_argument("folder", type=Path, help="Where kernels_OPERATION.png goes.")
    given = parser.parse_args()
    rows = []
    for path in given.csv:
        with path.open(newline="") as file:
            rows += [Row(**_values(line)) for line in csv.DictReader(file)]
    plot_all(rows, given.folder)


def plot_all(rows: Sequence[Row], folder: Path) -> None:
    """One file for each operation."""
    for op in dict.fromkeys(row.op for row in rows):
        plot([row for row in rows if row.op == op], folder / f"kernels_{op}.png")


def _values(line: dict[str, str]) -> dict[str, object]:
    numbers = {name: float(line[name]) for name in ("times_ours", "percent_of_limit", "milliseconds")}
    floor = float(line["times_floor"]) if line["times_floor"] else None
    return {**line, **numbers, "times_floor": floor, "rounds": int(line["rounds"])}


def plot(rows: Sequence[Row], path: Path) -> None:
    """Horizontal bars, one panel a shape, on a logarithmic axis."""
    shapes = list(dict.fromkeys(row.shape for row in rows))
    most = max(sum(row.shape == shape for row in rows) for shape in shapes)
    figure, axes = plt.subplots(1, len(shapes), figsize=(5.5 * len(shapes), 1 + 0.42 * most), squeeze=False)
    for axis, shape in zip(axes[0], shapes, strict=True):
        part = [row for row in rows if row.shape == shape][::-1]
        colors = ["#2f6f4f" if row.times_ours == 1 else "#b8c4bd" for row in part]
        bars = axis.barh([row.variant for row in part], [row.times_ours for row in part], color=colors)
        axis.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
        axis.set(xscale="log", title=shape, xlabel="time / time of ours")
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.margins(x=0.2)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(rows[0].op)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
