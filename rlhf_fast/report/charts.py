"""Line charts, interval bars and calibration plots as inline SVG strings, coloured by the page's CSS classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from rlhf_fast.runtime.statistics import Interval

WIDTH, HEIGHT = 320, 150
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 22
SMOOTHED_FROM = 20
"""Points from which on a moving average is drawn over the faint raw line."""


def line_chart(steps: Sequence[float], values: Sequence[float], label: str) -> str:
    """values over steps; points that are not finite leave a gap. `label` is the text for a screen reader."""
    points = [(x, y) for x, y in zip(steps, values, strict=True) if math.isfinite(y)]
    if not points:
        return '<p class="empty">No finite value was recorded.</p>'
    ticks = nice_ticks(min(y for _, y in points), max(y for _, y in points))
    x_low, x_high = min(steps), max(steps)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        up = (y - ticks[0]) / (ticks[-1] - ticks[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    smooth = len(points) >= SMOOTHED_FROM
    body = [_y_grid([(place(x_low, t)[1], tick_text(t, ticks)) for t in ticks]), _x_labels(x_low, x_high)]
    body.append(_path([place(*p) for p in points], "raw" if smooth else "line"))
    if smooth:
        averaged = moving_average([y for _, y in points], len(points) // 10)
        body.append(_path([place(x, y) for (x, _), y in zip(points, averaged, strict=True)], "line"))
    end = place(*points[-1]) if not smooth else place(points[-1][0], averaged[-1])
    body.append(f'<circle class="dot" cx="{end[0]:.1f}" cy="{end[1]:.1f}" r="3"/>')
    return _svg(WIDTH, HEIGHT, label, body)


def interval_bar(interval: Interval, label: str) -> str:
    """A share in [0, 1] as a dot with its interval, and a mark at one half."""
    x, low, high = (4 + 112 * value for value in (interval.value, interval.low, interval.high))
    return _svg(120, 16, label, [
        '<line class="grid" x1="4" x2="116" y1="8" y2="8"/>', '<line class="half" x1="60" x2="60" y1="1" y2="15"/>',
        f'<line class="line" x1="{low:.1f}" x2="{high:.1f}" y1="8" y2="8"/>',
        f'<circle class="dot" cx="{x:.1f}" cy="8" r="3.5"/>',
    ], "bar")  # fmt: skip


def calibration_plot(bins: Sequence[tuple[float, float, int]]) -> str:
    """bins: (mean predicted probability, observed share, count); a dot's area grows with its count."""
    if not bins:
        return '<p class="empty">No comparison was scored, so there is no calibration to show.</p>'
    size, pad = 240, 34
    span, most = size - pad - 10, max(count for _, _, count in bins)
    marks = [(t, pad + t * span, size - pad - t * span) for t in (0.0, 0.5, 1.0)]
    body = [f'<line class="half" x1="{pad}" y1="{size - pad}" x2="{pad + span}" y2="{size - pad - span}"/>']
    for t, x, y in marks:
        body.append(f'<line class="grid" x1="{pad}" x2="{pad + span}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(f'<text class="end" x="{pad - 6}" y="{y + 3.5:.1f}">{t:g}</text>')
        body.append(f'<text class="mid" x="{x:.1f}" y="{size - pad + 15}">{t:g}</text>')
    body.append(f'<text class="mid" x="{pad + span / 2}" y="{size - 4}">predicted</text>')
    body.append(f'<text x="{pad + 4}" y="20">observed</text>')
    for predicted, observed, count in bins:
        x, y, r = pad + predicted * span, size - pad - observed * span, 2.5 + 5 * math.sqrt(count / most)
        body.append(f'<circle class="bubble" cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"/>')
    return _svg(size, size, "Calibration: observed against predicted probability", body, "square")


def nice_ticks(low: float, high: float) -> list[float]:
    """2 to 5 ticks at multiples of 1, 2 or 5 times a power of ten that enclose [low, high]."""
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-12):
        pad = abs(high) / 2 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / 3
    power = 10 ** math.floor(math.log10(raw))
    step = power * min((1, 2, 5, 10), key=lambda m: abs(math.log(m * power / raw)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_text(value: float, ticks: Sequence[float]) -> str:
    step = ticks[1] - ticks[0]
    if step < 1e-4 or max(map(abs, ticks)) >= 1e5:
        return f"{value:.2g}"
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}".replace("-", "\N{MINUS SIGN}")


def moving_average(values: Sequence[float], reach: int) -> list[float]:
    """Mean of the latest `reach` values at each point, fewer at the beginning."""
    return [sum(part) / len(part) for part in (values[max(0, i - reach + 1) : i + 1] for i in range(len(values)))]


def _y_grid(rows: list[tuple[float, str]]) -> str:
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="end" x="{LEFT - 6}" y="{y + 3.5:.1f}">{text}</text>'
        for y, text in rows
    )


def _x_labels(low: float, high: float) -> str:
    y = HEIGHT - 6
    if low == high:
        return f'<text class="mid" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{y}">step {low:g}</text>'
    return f'<text x="{LEFT}" y="{y}">step {low:g}</text><text class="end" x="{WIDTH - RIGHT}" y="{y}">{high:g}</text>'


def _path(points: list[tuple[float, float]], kind: str) -> str:
    return f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def _svg(width: int, height: int, label: str, body: list[str], kind: str = "chart") -> str:
    inner = "".join(body)
    return f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{inner}</svg>'
