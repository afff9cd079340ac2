"""What a comparison of two policies adds to a page: the summary and the responses side by side, escaped."""

from __future__ import annotations

from html import escape

from rlhf_fast.evaluate.compare import Comparison, Pair, RewardComparison
from rlhf_fast.report.charts import interval_bar
from rlhf_fast.report.sections import number, prompt_block, response_block, share, share_span, span

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


def examples(comparison: Comparison, shown: int = SHOWN_PAIRS) -> str:
    """Both responses to each prompt, in the order of the data: the first `shown` open, the others folded away."""
    pairs = [_pair(pair, comparison.first_name, comparison.second_name) for pair in comparison.pairs]
    rest = pairs[shown:]
    folded = f"<details><summary>The other {len(rest)} prompts</summary>{''.join(rest)}</details>" if rest else ""
    return f'<p class="note">In the order of the data, not chosen by score.</p>{"".join(pairs[:shown])}{folded}'


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


def _pair(pair: Pair, first_name: str, second_name: str) -> str:
    return (
        f'<article>{prompt_block(pair.prompt)}<div class="pair">'
        f"{response_block(first_name, pair.first, pair.first_scores)}"
        f"{response_block(second_name, pair.second, pair.second_scores, 'second')}</div></article>"
    )
