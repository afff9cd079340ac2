"""One plot an operation: the time of each variant over that of the native backend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from benchmarks.run import Row


def plot(rows: Sequence[Row], path: Path) -> None:
    """Horizontal bars, one panel a shape, on a logarithmic axis."""
    shapes = list(dict.fromkeys(row.shape for row in rows))
    most = max(sum(row.shape == shape for row in rows) for shape in shapes)
    figure, axes = plt.subplots(1, len(shapes), figsize=(5.5 * len(shapes), 1 + 0.42 * most), squeeze=False)
    for axis, shape in zip(axes[0], shapes, strict=True):
        part = [row for row in rows if row.shape == shape][::-1]
        colors = ["#2f6f4f" if row.variant == "native" else "#b8c4bd" for row in part]
        bars = axis.barh([row.variant for row in part], [row.times_native for row in part], color=colors)
        axis.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
        axis.set(xscale="log", title=shape, xlabel="time / time of native")
        axis.margins(x=0.2)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(rows[0].op)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
