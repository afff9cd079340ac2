"""The page of a memory profile, `memory.html`: what memory.json holds, drawn.

Where the run was profiled for time as well, its phases and their floors are on the page, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rlhf_fast.profiling.memory_table import (
    ACTIVATIONS,
    BASE,
    BASELINE,
    BUFFERS,
    GIB,
    OWNERS,
    PHASES,
    SLACK,
    STEP,
    MemoryTable,
    gib,
)
from rlhf_fast.profiling.profile import Profile
from rlhf_fast.report.page import Report
from rlhf_fast.report.stacked import legend, stacked_area, stacked_bars

MEMORY_PAGE = "memory.html"
COLOURS = {owner: number for number, owner in enumerate(OWNERS)}
LASTING = OWNERS[: OWNERS.index(ACTIVATIONS)]  # from one phase to the next
DRAWN = (*LASTING, BUFFERS, *(owner for owner in OWNERS if owner not in (*LASTING, BUFFERS)))
"""The owners from the bottom up: what lasts lies under what comes and goes."""
UNTIL_DRAWN = 300
"""Stretches of an iteration that are drawn at most: more would be narrower than a line."""
GROUP = {phase: phase.split()[0] for phase in PHASES} | {STEP: "update"}
PART = {phase: phase.split()[-1] for phase in PHASES}


def write_memory_page(output: Path, facts: Mapping[str, Any], profile: Profile | None = None) -> Path:
    """facts: what memory.json holds. Returns the path of the page. Raises `OSError` if the disk refuses."""
    measured = MemoryTable.from_json(facts["measured"])
    predicted = MemoryTable.from_json(facts["predicted"]) if facts.get("predicted") else None
    report = Report(
        f"Memory of {output.resolve().name}",
        f"At most {words(measured.peak.expected)}, in {measured.peak_phase}, on {facts['device']}.",
    )
    report.add("At a glance", _tiles(measured, facts))
    report.add("One iteration", _iteration(facts["iteration"], facts["baseline"]), _ITERATION)
    report.add("The peak of each phase", _bars(measured, predicted), _PEAKS + (_PREDICTED if predicted else ""))
    report.add("Who holds what", _numbers(measured, predicted), _NUMBERS)
    report.add("What holds most", _largest(facts["largest"]), _LARGEST)
    report.add("Time", *_time(facts["seconds"], profile))
    return report.write(output / MEMORY_PAGE)


_ITERATION = (
    "Tensors by owner, over the iteration whose tensors were most; the process before them lies at the bottom. What "
    "rises and falls within a few milliseconds is drawn at its height. The time holds the profile's own."
)
_PEAKS = (
    "The most that the process held in each phase, and whose it was when the tensors were most. Slack is what the "
    "allocators hold beyond what was asked for, libraries and Python objects."
)
_PREDICTED = " The line over a bar is the prediction of all of it: its middle, and from low to high."
_NUMBERS = (
    "At the peak of each phase, in GiB. The peak of the run is in bold. What is asked for is all but slack and the "
    "process; a prediction of a phase is compared with it, as what is resident tells of the phase before it, too."
)
_LARGEST = "At the peak of the run: memory that is held, by the line of this project that asked for it."


def words(count: float) -> str:
    """Bytes with their unit: 1.78 GiB, 24 MiB."""
    if abs(count) >= 0.0995 * GIB:
        return f"{gib(count)} GiB"
    return f"{count / 2**20:.0f} MiB" if abs(count) >= 2**20 else f"{count / 1024:.0f} KiB"


def _tiles(measured: MemoryTable, facts: Mapping[str, Any]) -> str:
    row = measured.bytes[measured.peak_phase]
    owner = max((name for name in row if name not in (BASELINE, SLACK)), key=lambda name: row[name])
    tiles = [
        ("peak of the run", words(measured.peak.expected), f"in {measured.peak_phase}"),
        ("largest owner then", words(row[owner]), owner),
        ("models and training", words(_lasting(row)), "weights, gradients, moments"),
        ("the process alone", words(row.get(BASELINE, 0)), "before a model is opened"),
    ]
    return '<div class="tiles">' + "".join(
        f"<div><span>{name}</span><b>{value}</b><small>{escape(note)}</small></div>" for name, value, note in tiles
    ) + "</div>"  # fmt: skip


def _lasting(row: Mapping[str, float]) -> float:
    return sum(count for owner, count in row.items() if owner in LASTING)


def _iteration(facts: Mapping[str, Any], baseline: float) -> str:
    times, phases, series = _thinned(facts["seconds"], facts["phase"], facts["bytes"])
    series[BASELINE] = [baseline] * len(times)
    if not times:
        return '<p class="empty">No iteration was seen.</p>'
    order = [owner for owner in (BASELINE, *DRAWN[:-1]) if any(series.get(owner, ()))]
    shown = {owner: [value / GIB for value in series[owner]] for owner in order}
    strips = [[names.get(phase, phase) for phase in phases] for names in (GROUP, PART)]
    label = "GiB by owner over one iteration"
    chart = stacked_area(times, facts["until"], shown, COLOURS, strips, label)
    return f'{legend(order, COLOURS)}<div class="scroll"><p class="unit">GiB</p>{chart}</div>'


def _thinned(
    times: Sequence[float], phases: Sequence[str], series: Mapping[str, Sequence[float]]
) -> tuple[list[float], list[str], dict[str, list[float]]]:
    """At most UNTIL_DRAWN points: of neighbours of one phase that are joined, the one with the larger sum."""
    totals = [sum(column) for column in zip(*series.values(), strict=True)]
    kept: list[int] = []
    width = (times[-1] - times[0]) / UNTIL_DRAWN if times else 0
    starts: list[float] = []
    for i, time in enumerate(times):
        if kept and time - starts[-1] < width and phases[i] == phases[kept[-1]]:
            kept[-1] = max(kept[-1], i, key=lambda place: totals[place])
        else:
            kept.append(i)
            starts.append(time)
    return starts, [phases[i] for i in kept], {name: [row[i] for i in kept] for name, row in series.items()}


def _bars(measured: MemoryTable, predicted: MemoryTable | None) -> str:
    owners = [owner for owner in DRAWN if owner in measured.owners]
    rows = {phase: {owner: measured.bytes[phase].get(owner, 0) for owner in owners} for phase in measured.phases}
    marks = {}
    for phase in predicted.phases if predicted else ():
        if predicted is not None and phase in rows:
            total = predicted.total(phase)
            marks[phase] = (total.low, total.expected, total.high)
    chart = stacked_bars(rows, COLOURS, words, "Bytes by owner at the peak of each phase", marks=marks)
    return f'{legend(owners, COLOURS)}<div class="scroll">{chart}</div>'


def _numbers(measured: MemoryTable, predicted: MemoryTable | None) -> str:
    phases, peak = measured.phases, measured.peak_phase
    totals = {phase: measured.total(phase).expected for phase in phases}
    rows = [
        _row(
            f'<i class="key p{COLOURS[owner]}"></i>{escape(owner)}',
            [_cell(measured.bytes[p].get(owner, 0)) for p in phases],
        )
        for owner in measured.owners
    ]
    rows.append(_row("all", [f"<b>{_cell(totals[p])}</b>" if p == peak else _cell(totals[p]) for p in phases], "total"))
    if predicted is not None:
        asked = {phase: measured.asked(phase) for phase in phases}
        guesses = {phase: predicted.asked(phase) for phase in phases if phase in predicted.phases}
        rows.append(_row("asked for", [_cell(asked[p]) for p in phases], "total"))
        rows.append(_row("predicted", [_cell(guesses[p]) if p in guesses else "" for p in phases]))
        errors = {
            phase: _signed(f"{guess / asked[phase] - 1:+.1%}") for phase, guess in guesses.items() if asked[phase]
        }
        rows.append(_row("error", [errors.get(phase, "") for phase in phases]))
    heads = "".join(f'<th class="n">{escape(phase)}' for phase in phases)
    head, body = f"<thead><tr><th>{heads}</tr></thead>", "".join(rows)
    return f'<div class="scroll"><table class="dense">{head}<tbody>{body}</tbody></table></div>'


def _row(name: str, cells: Sequence[str], kind: str = "") -> str:
    inner = "".join(f'<td class="n">{cell}' for cell in cells)
    return f'<tr class="{kind}"><th scope="row">{name}{inner}</tr>'


def _cell(count: float) -> str:
    """In GiB, small numbers in MiB with their unit."""
    if count == 0:
        return "\N{MIDDLE DOT}"
    return _signed(gib(count) if abs(count) >= 0.0095 * GIB else f"<small>{count / 2**20:.2g} MiB</small>")


def _signed(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _largest(rows: Sequence[Mapping[str, Any]]) -> str:
    most = max((row["bytes"] for row in rows), default=1)
    body = ""
    for row in rows:
        line, _, what = row["line"].partition(", ")
        colour, wide = COLOURS[row["owner"]], 100 * row["bytes"] / most
        body += (
            f'<tr><td class="n">{words(row["bytes"])}<td class="share"><i class="p{colour}" style="width:{wide:.1f}%">'
            f'</i><td>{escape(row["owner"])}<td class="where"><code>{escape(line)}</code> '
            f"<small>{escape(what)}</small></tr>"
        )
    return (
        '<div class="scroll"><table class="dense"><thead><tr><th class="n">held<th><span class="hidden">of the most'
        f"</span><th>whose<th>asked for by</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _time(seconds: Mapping[str, float], profile: Profile | None) -> tuple[str, str]:
    """The chart of the time and its note."""
    if profile is not None and profile.totals:
        rows = {
            name: {"floor": min(total.floor, total.seconds), "above": max(0.0, total.seconds - total.floor)}
            for name, total in profile.totals.items()
        }
        colours = {"floor": COLOURS[BASE], "above": COLOURS[SLACK]}
        note = "Seconds of the run by phase; the dark part is the least that its arithmetic can take on this machine."
    else:
        rows = {phase: {"seconds": seconds[phase]} for phase in PHASES if phase in seconds}
        colours = {"seconds": COLOURS[BASE]}
        note = "Seconds of the run by phase. With profile as well, the least that its arithmetic can take is shown."
    chart = stacked_bars(rows, colours, lambda value: f"{value:.3g} s", "Seconds by phase")
    return f'<div class="scroll">{chart}</div>', f"{note} They hold the memory profile's own time."
