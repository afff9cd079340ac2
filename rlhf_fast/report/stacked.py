"""Stacked charts as inline SVG strings: areas over time, bars beside each other, and the legend of their colours.

A part has a colour by its number: the classes p0, p1, ... of the page's style, which has one set for light and one for
dark. Each area and bar says what it is where a pointer rests on it, and without one in its label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import groupby

from rlhf_fast.report.charts import nice_ticks, tick_text

WIDTH, LEFT, RIGHT = 960, 52, 12
AREA_HEIGHT, TOP, STRIP = 300, 12, 16
BAR, GAP, NAMES, TOTALS = 26, 14, 132, 88
NARROW = 34
"""Pixels below which a name does not fit into its part of a strip."""

Words = Callable[[float], str]  # a value as it is shown, with its unit


def stacked_area(
    times: Sequence[float], until: float, series: Mapping[str, Sequence[float]], colours: Mapping[str, int],
    strips: Sequence[Sequence[str]], label: str,
) -> str:  # fmt: skip
    """series: by name, a value at each of `times` (seconds); the first lies at the bottom. strips: rows of names under
    the chart, one name for each time: a run of equal ones is one field."""
    tops = [sum(column) for column in zip(*series.values(), strict=True)]
    ticks = nice_ticks(0, max(tops))
    width, height = WIDTH - LEFT - RIGHT, AREA_HEIGHT - TOP
    ends = [*times[1:], max(until, times[-1])]
    begin, span = times[0], max(ends[-1] - times[0], 1e-9)

    def x(time: float) -> float:
        return LEFT + (time - begin) / span * width

    def y(value: float) -> float:
        return AREA_HEIGHT - value / ticks[-1] * height

    body = [_rule(LEFT, WIDTH - RIGHT, y(tick), tick_text(tick, ticks)) for tick in ticks]
    under = [0.0] * len(times)
    for name, values in series.items():
        over = [below + value for below, value in zip(under, values, strict=True)]
        body.append(_area(name, colours[name], [*map(x, times)], [*map(x, ends)], [*map(y, under)], [*map(y, over)]))
        under = over
    bottom = AREA_HEIGHT + 8.0
    for names in strips:
        body.append(_strip(names, times, ends, x, bottom))
        bottom += STRIP + 3
    body.append(f'<text x="{LEFT}" y="{bottom + 12:.0f}">0 s</text>')
    body.append(f'<text class="end" x="{WIDTH - RIGHT}" y="{bottom + 12:.0f}">{span:.3g} s</text>')
    return _svg(WIDTH, bottom + 18, label, body)


def stacked_bars(
    rows: Mapping[str, Mapping[str, float]], colours: Mapping[str, int], words: Words, label: str, *,
    marks: Mapping[str, tuple[float, float, float]] | None = None,
) -> str:  # fmt: skip
    """A bar for each row, of its parts by name, with their sum behind it. marks: by row, a low, a middle and a high
    value that are drawn over its bar. Parts below zero are left out of the drawing, not of the sum."""
    marks = marks or {}
    longest = max(
        [sum(max(0.0, v) for v in parts.values()) for parts in rows.values()] + [m[2] for m in marks.values()]
    )
    scale = (WIDTH - NAMES - TOTALS) / max(longest, 1e-9)
    body, top = [], 4.0
    for name, parts in rows.items():
        body.append(f'<text class="name end" x="{NAMES - 10}" y="{top + BAR / 2 + 4:.1f}">{escape(name)}</text>')
        left = float(NAMES)
        for part, value in parts.items():
            wide = max(0.0, value) * scale
            if wide >= 0.1:
                body.append(_bar(f"{name}: {part} {words(value)}", f"p{colours[part]}", left, top, wide))
            left += wide
        if name in marks:
            body.append(_mark(marks[name], scale, top))
            left = max(left, NAMES + marks[name][2] * scale)
        total = words(sum(parts.values()))
        body.append(f'<text class="sum" x="{left + 8:.1f}" y="{top + BAR / 2 + 4:.1f}">{total}</text>')
        top += BAR + GAP
    return _svg(WIDTH, top, label, body)


def legend(names: Sequence[str], colours: Mapping[str, int]) -> str:
    """A key of the colours, in the order of `names`."""
    keys = "".join(f'<li><i class="p{colours[name]}"></i>{escape(name)}</li>' for name in names)
    return f'<ul class="legend">{keys}</ul>'


def _area(
    name: str, colour: int, lefts: list[float], rights: list[float], unders: list[float], overs: list[float]
) -> str:
    """Steps from one time to the next: there and, underneath, back. Nothing where all values are 0."""
    if all(abs(under - over) < 0.05 for under, over in zip(unders, overs, strict=True)):
        return ""
    there = [f"{x:.1f},{v:.1f}" for a, b, v in zip(lefts, rights, overs, strict=True) for x in (a, b)]
    back = [f"{x:.1f},{v:.1f}" for a, b, v in zip(lefts, rights, unders, strict=True) for x in (a, b)]
    points = " ".join(_without_repeats(there) + _without_repeats(back)[::-1])
    return f'<polygon class="p{colour}" points="{points}"><title>{escape(name)}</title></polygon>'


def _without_repeats(points: list[str]) -> list[str]:
    """The corners alone: points between two of the same height are left out."""
    return [
        point for i, point in enumerate(points)
        if i in (0, len(points) - 1) or len({p.partition(",")[2] for p in points[i - 1 : i + 2]}) > 1
    ]  # fmt: skip


def _strip(
    names: Sequence[str], times: Sequence[float], ends: Sequence[float], x: Callable[[float], float], top: float
) -> str:
    fields, shades = [], {name: i % 4 for i, name in enumerate(dict.fromkeys(names))}
    for name, run in groupby(range(len(names)), key=lambda i: names[i]):
        places = list(run)
        left, right = x(times[places[0]]), x(ends[places[-1]])
        field = f'<rect class="s{shades[name]}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}"'
        fields.append(f'{field} height="{STRIP}"><title>{escape(name)}</title></rect>')
        if right - left > max(NARROW, 6.2 * len(name)):
            fields.append(f'<text class="mid" x="{(left + right) / 2:.1f}" y="{top + 12:.1f}">{escape(name)}</text>')
    return "".join(fields)


def _bar(what: str, kind: str, left: float, top: float, width: float) -> str:
    place = f'x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{BAR}"'
    return f'<rect class="{kind}" {place}><title>{escape(what)}</title></rect>'


def _mark(values: tuple[float, float, float], scale: float, top: float) -> str:
    low, middle, high = (NAMES + value * scale for value in values)
    y = top + BAR / 2
    return (
        f'<g class="mark"><line x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{top - 3:.1f}" y2="{top + BAR + 3:.1f}"/></g>'
    )


def _rule(left: float, right: float, y: float, text: str) -> str:
    return (
        f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="end" x="{left - 6}" y="{y + 3.5:.1f}">{text}</text>'
    )


def _svg(width: float, height: float, label: str, body: Sequence[str]) -> str:
    inner = "".join(body)
    view = f'viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'<svg class="chart wide" {view} role="img" aria-label="{escape(label)}">{inner}</svg>'
