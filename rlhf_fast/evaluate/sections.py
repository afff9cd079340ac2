"""The parts of a report, each a function from results to a piece of HTML. Every text is escaped here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from rlhf_fast.data.schema import Prompt
from rlhf_fast.evaluate.charts import calibration_plot, interval_bar, line_chart
from rlhf_fast.evaluate.compare import Comparison, Pair, RewardComparison
from rlhf_fast.evaluate.statistics import Interval

CURVES = {
    "objective/scores": ("Reward", "mean score of a response"),
    "objective/kl": ("KL", "to the reference, nats a response"),
    "objective/entropy": ("Entropy", "nats a response"),
    "policy/clipfrac_avg": ("Clip fraction", "share of tokens outside the clip range"),
    "val/explained_variance": ("Explained variance", "of the critic; 0 is a constant"),
}
SHOWN_PAIRS = 12


def summary(comparison: Comparison) -> str:
    """Rewards with win rates, then behaviour; and a warning where the first reward rose and another fell."""
    first, second = escape(comparison.first_name), escape(comparison.second_name)
    hidden = '<span class="hidden">Interval</span>'
    rewards = "".join(_reward_row(reward) for reward in comparison.rewards)
    kl = "not defined for greedy responses" if comparison.kl is None else f"{number(comparison.kl)} nats a response"
    columns = f'<th class="n">{first}<th class="n">{second}'
    return (
        f"{_warning(comparison)}"
        f'<div class="scroll"><table><thead><tr><th>Reward{columns}<th class="n">Difference'
        f'<th class="n">{second} wins<th>{hidden}</tr></thead><tbody>{rewards}</tbody></table></div>'
        '<p class="note">Mean scores; paired difference and win rate with 95&nbsp;% intervals; ties count half. '
        "The dotted mark is one half.</p>"
        f'<div class="scroll"><table class="narrow"><thead><tr><th>Responses{columns}</tr></thead>'
        f"<tbody>{_behaviour_rows(comparison)}</tbody></table></div>"
        f'<p class="note">KL of {second} to {first}: {kl}.</p>'
    )


def training(metrics: Sequence[Mapping[str, float]]) -> str:
    """A small chart for each of `CURVES` that the rows of metrics.jsonl record."""
    charts = "".join(_curve(metrics, key, *text) for key, text in CURVES.items() if any(key in m for m in metrics))
    if not charts:
        return (
            '<p class="empty">No training metrics: metrics.jsonl has no row with '
            f"{escape(', '.join(CURVES))}. Give the folder of a PPO run.</p>"
        )
    note = "A faint line is each step; the strong one a moving average over a tenth of the run."
    return f'<div class="grid-of-charts">{charts}</div><p class="note">{note}</p>'


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


def examples(comparison: Comparison, shown: int = SHOWN_PAIRS) -> str:
    """Both responses to each prompt, in the order of the data: the first `shown` open, the others folded away."""
    pairs = [_pair(pair, comparison.first_name, comparison.second_name) for pair in comparison.pairs]
    rest = pairs[shown:]
    folded = f"<details><summary>The other {len(rest)} prompts</summary>{''.join(rest)}</details>" if rest else ""
    return f'<p class="note">In the order of the data, not chosen by score.</p>{"".join(pairs[:shown])}{folded}'


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


def _reward_row(reward: RewardComparison) -> str:
    sign = "+" if reward.difference.value > 0 else ""
    bar = interval_bar(reward.win_rate, f"win rate {100 * reward.win_rate.value:.1f} %")
    return (
        f'<tr><th scope="row">{escape(reward.name)}<td class="n">{number(reward.first_mean)}'
        f'<td class="n">{number(reward.second_mean)}'
        f'<td class="n"><b>{sign}{number(reward.difference.value)}</b><br><small>{span(reward.difference)}</small>'
        f'<td class="n"><b>{share(reward.win_rate.value)}</b><br><small>{share_span(reward.win_rate)}</small>'
        f"<td>{bar}</tr>"
    )


def _behaviour_rows(comparison: Comparison) -> str:
    first, second = comparison.first, comparison.second
    rows = (
        ("Mean length, tokens", number(first.mean_length), number(second.mean_length)),
        ("Cut off by the budget", share(first.truncated_fraction), share(second.truncated_fraction)),
        ("Distinct 2-grams", share(first.distinct_2), share(second.distinct_2)),
        ("Repeated 3-grams", share(first.repetition), share(second.repetition)),
    )
    return "".join(f'<tr><th scope="row">{name}<td class="n">{a}<td class="n">{b}</tr>' for name, a, b in rows)


def _warning(comparison: Comparison) -> str:
    fell = comparison.over_optimised_under
    if not fell:
        return ""
    return (
        f'<p class="warning"><b>Over-optimised:</b> {escape(comparison.rewards[0].name)} rose while '
        f"{escape(', '.join(fell))} fell. Train for fewer episodes, or raise kl_coef.</p>"
    )


def _curve(metrics: Sequence[Mapping[str, float]], key: str, title: str, unit: str) -> str:
    rows = [row for row in metrics if key in row]
    steps, values = [row["step"] for row in rows], [row[key] for row in rows]
    finite = [value for value in values if math.isfinite(value)] or [math.nan]
    last = f'<span class="last">{number(finite[0])} \N{RIGHTWARDS ARROW} {number(finite[-1])}</span>'
    label = f"{title} over {len(rows)} steps"
    return f"<figure><h3>{title}{last}</h3><p>{unit}</p>{line_chart(steps, values, label)}</figure>"


def _pair(pair: Pair, first_name: str, second_name: str) -> str:
    return (
        f'<article>{_prompt(pair.prompt)}<div class="pair">'
        f"{_response(first_name, pair.first, pair.first_scores)}"
        f"{_response(second_name, pair.second, pair.second_scores, 'second')}</div></article>"
    )


def _prompt(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return f'<div class="prompt">{escape(prompt)}</div>'
    turns = "".join(
        f'<p class="{"system" if m["role"] == "system" else "turn"}">{escape(m["content"])}</p>' for m in prompt
    )
    return f'<div class="prompt">{turns}</div>'


def _response(name: str, text: str, scores: Mapping[str, float], kind: str = "first") -> str:
    chips = "".join(f"<span>{escape(reward)} <b>{number(score)}</b></span>" for reward, score in scores.items())
    said = escape(text) if text.strip() else '<i class="empty">an empty response</i>'
    return f'<section class="{kind}"><h4>{escape(name)}</h4><p>{said}</p><div class="scores">{chips}</div></section>'
