"""`Report`: sections of HTML in one self-contained page: no script, no external resource, light and dark; and how the
page of every training run begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from rlhf_fast.report.sections import table, training
from rlhf_fast.report.stacked import STYLE as STACKED
from rlhf_fast.runtime.files import write_text

REPORT_FILE = "report.html"


@dataclass
class Report:
    """A page being built. `title` and `subtitle` are plain text; the body of a section is HTML (see `sections`)."""

    title: str
    subtitle: str
    parts: list[str] = field(default_factory=list)

    def add(self, heading: str, body: str, note: str = "") -> None:
        """Append a section; `note` is plain text under its heading."""
        under = f'<p class="note">{escape(note)}</p>' if note else ""
        self.parts.append(f'<section class="part"><h2>{escape(heading)}</h2>{under}{body}</section>')

    def html(self) -> str:
        title = escape(self.title)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title}</title><style>{STYLE}{STACKED}</style></head>\n<body><main>"
            f"<header><h1>{title}</h1><p>{escape(self.subtitle)}</p></header>\n"
            + "\n".join(self.parts)
            + "\n<footer>rlhf-fast</footer></main></body></html>\n"
        )

    def write(self, path: str | Path) -> Path:
        """The whole page or nothing. Raises `OSError` if the disk refuses."""
        path = Path(path)
        write_text(path, self.html())
        return path


def run_report(name: str, subtitle: str, facts: Mapping[str, str], metrics: Sequence[Mapping[str, float]]) -> Report:
    """The page of a training run: what it was (facts, by topic), and its curves; a stage adds what it alone has."""
    from rlhf_fast.runtime.tracking import duration  # torch comes with it, which a page without a run has no use for

    report = Report(name, subtitle)
    took = [row["seconds"] for row in metrics if "seconds" in row]
    report.add("Run", table({**facts, **({"Time": duration(took[-1])} if took else {})}))
    report.add("Training", training(metrics))
    return report


STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf8; --card: #fff; --ink: #22252a; --soft: #6a7078; --line: #e4e2dd;
  --accent: #1f6f78; --tint: #eef5f5; --warn: #9a4a12; --warn-tint: #fbf1e7; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171a; --card: #1c1f23; --ink: #e6e5e1; --soft: #979da6;
  --line: #30343a; --accent: #6cc0c8; --tint: #1b2a2c; --warn: #e9a66b; --warn-tint: #2d2218; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 3rem 1.25rem 2rem; }
header { margin-bottom: 2.5rem; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -.02em; font-weight: 650; margin: 0 0 .4rem;
  overflow-wrap: anywhere; }
header p { margin: 0; color: var(--soft); }
h2 { font-size: 1.2rem; font-weight: 600; margin: 0 0 1rem; padding-top: 1.25rem; border-top: 1px solid var(--line); }
.part { margin-bottom: 2.75rem; }
.note, figcaption, footer { color: var(--soft); font-size: .875rem; max-width: 44rem; }
.note { margin: .75rem 0 1.5rem; }
.empty { color: var(--soft); font-style: italic; }
.hidden { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
.warning { background: var(--warn-tint); color: var(--warn); border-radius: .5rem; padding: .75rem 1rem;
  margin: 0 0 1.25rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .6rem 1.25rem .6rem 0; border-bottom: 1px solid var(--line); }
tr > :last-child { padding-right: 0; }
thead th { color: var(--soft); font-weight: 500; font-size: .875rem; vertical-align: bottom; }
tbody th { font-weight: 500; }
td { white-space: nowrap; }
small { color: var(--soft); font-size: .8125rem; }
.n { text-align: right; }
b { font-weight: 600; }
.grid-of-charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); gap: 1rem; }
table.narrow { max-width: 34rem; }
figure { margin: 1.5rem 0 0; }
.grid-of-charts figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .75rem;
  padding: 1rem 1rem .5rem; }
h3 { display: flex; justify-content: space-between; gap: .75rem; font-size: .9375rem; font-weight: 600; margin: 0; }
.last { color: var(--accent); font-size: .8125rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.grid-of-charts figure p { color: var(--soft); font-size: .8125rem; margin: 0 0 .5rem; }
svg { display: block; }
svg.chart { width: 100%; height: auto; }
svg.square { width: 100%; max-width: 20rem; height: auto; }
svg.bar { width: 7.5rem; height: 1rem; }
svg text { fill: var(--soft); font-size: 10.5px; font-variant-numeric: tabular-nums; }
svg .end { text-anchor: end; }
svg .mid { text-anchor: middle; }
svg .grid { stroke: var(--line); }
svg .half { stroke: var(--soft); stroke-dasharray: 2 3; }
svg .line { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .raw { fill: none; stroke: var(--accent); stroke-width: 1; opacity: .35; }
svg .dot { fill: var(--accent); }
svg .bubble { fill: var(--accent); fill-opacity: .55; stroke: var(--card); }
.facts td { white-space: normal; padding-right: 0; }
.facts th { width: 7rem; vertical-align: top; }
mark { background: var(--tint); color: var(--accent); border-radius: .2rem; }
article { margin: 0 0 2rem; }
.prompt { border-left: 3px solid var(--line); padding: .1rem 0 .1rem 1rem; margin-bottom: .9rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.prompt p { margin: 0 0 .2rem; }
.system { color: var(--soft); font-size: .8125rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
.pair.one { grid-template-columns: 1fr; }
.pair section { display: flex; flex-direction: column; background: var(--card); border: 1px solid var(--line);
  border-radius: .75rem; padding: .9rem 1.1rem; min-width: 0; }
.pair .second { background: var(--tint); }
.pair p { margin: .3rem 0 .75rem; white-space: pre-wrap; overflow-wrap: anywhere; }
h4 { color: var(--soft); font-size: .8125rem; font-weight: 600; margin: 0; }
.second h4 { color: var(--accent); }
.scores { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin-top: auto; color: var(--soft); font-size: .8125rem;
  font-variant-numeric: tabular-nums; }
.scores b { color: var(--ink); }
details > summary { cursor: pointer; color: var(--accent); margin-bottom: 1.5rem; }
footer { margin-top: 3rem; }
@media (max-width: 40rem) { main { padding-top: 1.75rem; } h1 { font-size: 1.5rem; }
  .pair { grid-template-columns: 1fr; gap: .6rem; } th, td { padding-right: .8rem; } }
"""
