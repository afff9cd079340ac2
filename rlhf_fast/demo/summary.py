"""The table at the end of a demonstration, and where everything lies."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlhf_fast.demo.page import Results
from rlhf_fast.runtime.statistics import Interval

SAVED = (
    ("report.html", "the report; open it in a browser"),
    ("sft", "SFT adapter: where PPO started, and its reference"),
    ("proxy_reward", "reward model that PPO was trained against"),
    ("gold_reward", "reward model that only judged"),
    ("ppo", "the policy: a PEFT adapter, and metrics.jsonl"),
    ("evaluation", "both answers to every held-out prompt, with scores"),
)


def print_summary(console: Console, results: Results, folder: Path, *, seconds: float) -> None:
    comparison = results.comparison
    table = Table(title=f"PPO against SFT on {len(comparison.pairs)} held-out prompts", title_justify="left")
    for column in ("", "SFT", "PPO", "PPO wins"):
        table.add_column(column, justify="left" if not column else "right")
    for reward in comparison.rewards:
        means = f"{reward.first_mean:.2f}", f"{reward.second_mean:.2f}"
        table.add_row(reward.name.replace("_", " "), *means, share(reward.win_rate))
    for name, value in (
        ("length, tokens", lambda b: f"{b.mean_length:.1f}"),
        ("cut off by the budget", lambda b: f"{b.truncated_fraction:.1%}"),
        ("distinct 2-grams", lambda b: f"{b.distinct_2:.3f}"),
    ):  # fmt: skip
        table.add_row(name, value(comparison.first), value(comparison.second), "")
    if comparison.kl is not None:
        table.add_row("KL, nats a response", "", f"{comparison.kl:.2f}", "")
    console.print(table)
    accuracy = f"proxy {share(results.proxy.accuracy)}, gold {share(results.gold.accuracy)}"
    console.print(f"Reward models on held-out pairs: {accuracy}")
    if comparison.over_optimised_under:
        console.print("[bold]Over-optimised[/bold]: the proxy reward rose and the gold reward fell.")
    for name, what in SAVED:
        console.print(f"  {folder / name}  [dim]{what}[/dim]", soft_wrap=True)
    console.print(f"{seconds / 60:.1f} minutes.")


def share(interval: Interval) -> str:
    return f"{interval.value:.1%} ({interval.low:.1%} to {interval.high:.1%})"
