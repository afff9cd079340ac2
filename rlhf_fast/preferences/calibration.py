"""Does sigmoid(score difference) mean what it says? A table, the expected calibration error, and a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_fast.preferences.metrics import Pair


@dataclass(frozen=True)
class Bin:
    """Pairs whose predicted probability lies in [low, high): their mean prediction and the observed frequency."""

    low: float
    high: float
    count: int
    predicted: float
    observed: float


@dataclass(frozen=True)
class Calibration:
    """bins: those that hold pairs. error: sum of count / total * |predicted - observed| (ECE, Guo et al. 2017)."""

    bins: list[Bin]
    error: float


def calibration(pairs: Sequence[Pair], bins: int = 10) -> Calibration:
    """Each pair from the side that the scores prefer, so predictions lie in [0.5, 1], in `bins` equal parts.

    Scores have to be on the scale that the loss saw (before a reward model is normalised). `observed` counts a pair
    with its label's probability; a pair without one is certain. A margin of 0 counts half. Raises `ValueError` for no
    pairs.
    """
    if not pairs:
        raise ValueError("the calibration of 0 pairs is not defined; expected at least one strict pair.")
    width = 0.5 / bins
    members: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for pair in pairs:
        predicted = 1 / (1 + math.exp(-abs(pair.margin)))
        observed = pair.probability if pair.margin > 0 else 1 - pair.probability if pair.margin < 0 else 0.5
        members[min(bins - 1, int((predicted - 0.5) / width))].append((predicted, observed))
    table = [_bin(0.5 + i * width, width, group) for i, group in enumerate(members) if group]
    error = sum(b.count * abs(b.predicted - b.observed) for b in table) / len(pairs)
    return Calibration(table, error)


def _bin(low: float, width: float, group: list[tuple[float, float]]) -> Bin:
    predicted, observed = (sum(column) / len(group) for column in zip(*group, strict=True))
    return Bin(low, low + width, len(group), predicted, observed)


def calibration_svg(table: Calibration, *, size: int = 320) -> str:
    """An `<svg>` element to put into HTML: a dot for each bin (its area grows with the count), and the diagonal."""
    margin = 44
    span = size - 2 * margin

    def x(p: float) -> float:
        return margin + (p - 0.5) * 2 * span

    def y(p: float) -> float:
        return size - margin - p * span

    most = max(b.count for b in table.bins)
    dots = "".join(
        f'<circle cx="{x(b.predicted):.1f}" cy="{y(b.observed):.1f}" r="{3 + 6 * math.sqrt(b.count / most):.1f}" '
        f'fill="#2563eb" fill-opacity="0.75"><title>{b.count} pairs: predicted {b.predicted:.2f}, '
        f"observed {b.observed:.2f}</title></circle>"
        for b in table.bins
    )
    ticks = "".join(
        f'<text x="{x(p):.1f}" y="{size - margin + 16}" text-anchor="middle">{p:g}</text>' for p in (0.5, 0.75, 1.0)
    ) + "".join(
        f'<text x="{margin - 6}" y="{y(p) + 4:.1f}" text-anchor="end">{p:g}</text>' for p in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" width="{size}" height="{size}" '
        f'role="img" aria-label="calibration, expected error {table.error:.3f}" font-family="sans-serif" '
        f'font-size="11" fill="#333"><rect x="{margin}" y="{margin}" width="{span}" height="{span}" fill="none" '
        f'stroke="#ccc"/><line x1="{x(0.5)}" y1="{y(0.5)}" x2="{x(1.0)}" y2="{y(1.0)}" stroke="#999" '
        f'stroke-dasharray="4 3"/>{dots}{ticks}<text x="{size / 2}" y="{size - 8}" text-anchor="middle">predicted '
        f'probability</text><text x="12" y="{size / 2}" text-anchor="middle" transform="rotate(-90 12 {size / 2})">'
        f'observed frequency</text><text x="{size / 2}" y="{margin - 12}" text-anchor="middle">expected calibration '
        f"error {table.error:.3f}</text></svg>"
    )
