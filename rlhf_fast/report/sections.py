"""Sections that several stages share: curves, responses, accuracies, calibration. Every text is escaped here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from rlhf_fast.report.charts import SMOOTHED_FROM, calibration_plot, interval_bar, line_chart
from rlhf_fast.runtime.statistics import Interval

CURVES = {
    "loss": ("Loss", "mean of the rows of a step"),
    "eval_loss": ("Held-out loss", "before the first step and after the last"),
    "accuracy": ("Accuracy", "pairs of a step that are ordered right"),
    "margin": ("Margin", "mean score of the better, less the worse"),
    "objective/scores": ("Reward", "mean score of a response"),
    "objective/kl": ("KL", "to the reference, nats a response"),
    "rollout/response_length": ("Length", "mean tokens of a response"),
    "rollout/truncated_fraction": ("Cut off", "share of responses that are too long"),
    "objective/entropy": ("Entropy", "nats a response"),
    "policy/clipfrac_avg": ("Clip fraction", "share of tokens outside the clip range"),
    "loss/value_avg": ("Value loss", "of the critic, mean over an update"),
    "val/explained_variance": ("Explained variance", "of the critic; 0 is a constant"),
    "grad_norm": ("Gradient norm", "before clipping"),
}
HEADLINES = (
    "objective/scores", "objective/kl", "objective/entropy", "policy/clipfrac_avg", "val/explained_variance",
)  # fmt: skip
"""The curves of PPO where a page is about more than its training."""


def training(metrics: Sequence[Mapping[str, float]], curves: Iterable[str] = CURVES) -> str:
    """A small chart for each of `curves`, names in `CURVES`, that the rows of metrics.jsonl record."""
    charts = "".join(_curve(metrics, key, *CURVES[key]) for key in curves if any(key in m for m in metrics))
    if not charts:
        return (
            '<p class="empty">No training metrics: metrics.jsonl has no row with '
            f"{escape(', '.join(curves))}. Give the folder of a training run.</p>"
        )
    note = '<p class="note">A faint line is each step; the strong one a moving average over a tenth of the run.</p>'
    return f'<div class="grid-of-charts">{charts}</div>{note if len(metrics) >= SMOOTHED_FROM else ""}'


def table(rows: Mapping[str, str]) -> str:
    """Topics and what is to be said of each."""
    body = "".join(f'<tr><th scope="row">{escape(name)}<td>{escape(text)}</tr>' for name, text in rows.items())
    return f'<table class="facts"><tbody>{body}</tbody></table>'


def prompt_block(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """A prompt's text, or its turns."""
    if isinstance(prompt, str):
        return f'<div class="prompt">{escape(prompt)}</div>'
    turns = "".join(
        f'<p class="{"system" if m["role"] == "system" else "turn"}">{escape(m["content"] or "")}</p>' for m in prompt
    )
    return f'<div class="prompt">{turns}</div>'


def response_block(name: str, text: str, scores: Mapping[str, float | None], kind: str = "first") -> str:
    """A response under its name with what was measured of it, None where it was not judged; kind "second" is set off by
    its colour."""

    def shown(score: float | None) -> str:
        return "not judged" if score is None else number(score)

    chips = "".join(f"<span>{escape(reward)} <b>{shown(score)}</b></span>" for reward, score in scores.items())
    said = escape(text) if text.strip() else '<i class="empty">an empty response</i>'
    return f'<section class="{kind}"><h4>{escape(name)}</h4><p>{said}</p><div class="scores">{chips}</div></section>'


def learnt_text(parts: Sequence[tuple[str, bool]]) -> str:
    """A text in parts, those that are learnt marked."""
    body = "".join(f"<mark>{escape(text)}</mark>" if learnt else escape(text) for text, learnt in parts)
    return f'<article><div class="prompt">{body}</div></article>'


def accuracies(rows: Sequence[tuple[str, Interval]]) -> str:
    """Reward models and rules, each with the share of held-out pairs that it orders as people did."""
    if not rows:
        return '<p class="empty">No accuracy was measured: there were no held-out comparisons.</p>'
    body = "".join(
        f'<tr><th scope="row">{escape(name)}<td class="n">{share(i.value)}<td class="n">{share_span(i)}'
        f'<td>{interval_bar(i, f"{100 * i.value:.1f} %")}<td class="n">{i.count}</tr>'
        for name, i in rows
    )
    return (
        '<div class="scroll"><table><thead><tr><th>Ranked by<th class="n">Accuracy<th class="n">95&nbsp;% interval'
        f'<th><span class="hidden">Interval</span><th class="n">Pairs</tr></thead><tbody>{body}</tbody></table></div>'
    )


def calibration(bins: Sequence[tuple[float, float, int]]) -> str:
    """bins: (mean predicted probability, observed share, count)."""
    return (
        f"<figure>{calibration_plot(bins)}<figcaption>How often the response was the preferred one, against the "
        "probability that the reward model gave it. On the dotted line the two agree; a larger dot holds more pairs."
        "</figcaption></figure>"
    )


def number(value: float) -> str:
    """Three significant digits, with a true minus sign."""
    if not math.isfinite(value):
        return "\N{EN DASH}"
    text = f"{value:.0f}" if abs(value) >= 100 or value == 0 else f"{value:#.3g}"
    return text.replace("-", "\N{MINUS SIGN}", 1)


def share(value: float) -> str:
    return f"{100 * value:.1f}&nbsp;%" if math.isfinite(value) else "\N{EN DASH}"


def span(interval: Interval) -> str:
    return f"{number(interval.low)} to {number(interval.high)}"


def share_span(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} to {share(interval.high)}"


def _curve(metrics: Sequence[Mapping[str, float]], key: str, title: str, unit: str) -> str:
    rows = [row for row in metrics if key in row]
    steps, values = [row["step"] for row in rows], [row[key] for row in rows]
    finite = [value for value in values if math.isfinite(value)] or [math.nan]
    last = f'<span class="last">{number(finite[0])} \N{RIGHTWARDS ARROW} {number(finite[-1])}</span>'
    label = f"{title} over {len(rows)} steps"
    return f"<figure><h3>{title}{last}</h3><p>{unit}</p>{line_chart(steps, values, label)}</figure>"
