"""Stacked charts as inline SVG strings: areas over time, bars beside each other, and the legend of their colours.

A part has a colour by its number: the classes p0, p1, ... of `STYLE`, which has one set for light and one for dark.
Each area and bar says what it is where a pointer rests on it, and without one in its label.
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


STYLE = """
:root {
  --s0: #e9e5dc; --s1: #dcebe9; --s2: #f3e3d3; --s3: #e5e0ee;
  --p0: #1f6f78; --p1: #5a9a8f; --p2: #2c5aa0; --p3: #6b84cf; --p4: #a7b6e6; --p5: #c4652b; --p6: #e0a53c;
  --p7: #b0413e; --p8: #7a4d9e; --p9: #b48fd0; --p10: #d77fa3; --p11: #8a9aa3; --p12: #d3cfc6; --p13: #e4e1da; }
@media (prefers-color-scheme: dark) { :root {
  --s0: #2b2f35; --s1: #21383a; --s2: #3b2f22; --s3: #332d40;
  --p0: #4aa3ab; --p1: #79c2b4; --p2: #5f92dd; --p3: #8fa6ea; --p4: #bfcaf2; --p5: #e08a52; --p6: #edbd62;
  --p7: #e0716b; --p8: #a57fd0; --p9: #cbb0e2; --p10: #e9a0bf; --p11: #94a3ad; --p12: #4b5058; --p13: #353a41; } }
.p0 { fill: var(--p0); background: var(--p0); } .p1 { fill: var(--p1); background: var(--p1); }
.p2 { fill: var(--p2); background: var(--p2); } .p3 { fill: var(--p3); background: var(--p3); }
.p4 { fill: var(--p4); background: var(--p4); } .p5 { fill: var(--p5); background: var(--p5); }
.p6 { fill: var(--p6); background: var(--p6); } .p7 { fill: var(--p7); background: var(--p7); }
.p8 { fill: var(--p8); background: var(--p8); } .p9 { fill: var(--p9); background: var(--p9); }
.p10 { fill: var(--p10); background: var(--p10); } .p11 { fill: var(--p11); background: var(--p11); }
.p12 { fill: var(--p12); background: var(--p12); } .p13 { fill: var(--p13); background: var(--p13); }
.s0 { fill: var(--s0); } .s1 { fill: var(--s1); } .s2 { fill: var(--s2); } .s3 { fill: var(--s3); }
svg.wide { min-width: 40rem; }
svg .name { fill: var(--ink); font-size: 12.5px; }
svg .sum { fill: var(--ink); font-size: 12.5px; font-weight: 600; }
svg .mark line { stroke: var(--ink); stroke-width: 1.5; }
svg polygon, svg rect { stroke: var(--paper); stroke-width: .4; }
.unit { color: var(--soft); font-size: .75rem; margin: 0 0 .2rem; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; list-style: none; margin: 0 0 1.1rem; padding: 0;
  color: var(--soft); font-size: .8125rem; }
.legend i, .key { display: inline-block; width: .7rem; height: .7rem; border-radius: .2rem; margin-right: .45rem; }
.share { min-width: 6rem; width: 7rem; }
.dense .where { white-space: normal; }
.share i { display: block; height: .55rem; border-radius: .2rem; }
.dense { font-size: .875rem; }
.dense th, .dense td { padding: .42rem 1rem .42rem 0; }
.total td, .total th { border-top: 1px solid var(--soft); }
code { font: .8125rem ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 13rem), 1fr)); gap: 1rem; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: .75rem; padding: .9rem 1.1rem; }
.tiles span, .tiles small { display: block; color: var(--soft); font-size: .8125rem; }
.tiles b { display: block; font-size: 1.5rem; letter-spacing: -.01em; line-height: 1.35;
  font-variant-numeric: tabular-nums; }
"""
