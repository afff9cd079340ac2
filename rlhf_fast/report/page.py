"""`Report`: sections of HTML in one self-contained page: no script, no external resource, light and dark; and how the
page of every training run begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from rlhf_fast.report.page_style import STYLE
from rlhf_fast.report.sections import table, training
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
            f"<title>{title}</title><style>{STYLE}</style></head>\n<body><main>"
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
