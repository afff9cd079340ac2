"""What a demonstration shows at its end: the report (what PPO changed, how it trained, what the reward models are
worth, both answers), and the table on the terminal with where everything lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlhf_fast.demo.data import NAME
from rlhf_fast.evaluate.compare import Comparison
from rlhf_fast.evaluate.run import examples, summary
from rlhf_fast.preferences.metrics import Evaluation
from rlhf_fast.preferences.reward_model import calibration_section, length_note
from rlhf_fast.report.page import Report
from rlhf_fast.report.sections import HEADLINES, accuracies, training
from rlhf_fast.runtime.statistics import Interval


@dataclass(frozen=True)
class Results:
    """What a demonstration found: PPO against SFT, both reward models on held-out pairs, metrics by step."""

    comparison: Comparison
    proxy: Evaluation
    gold: Evaluation
    ppo_metrics: list[dict[str, float]]


def write_report(results: Results, path: Path) -> Path:
    """One self-contained HTML file."""
    pairs = len(results.comparison.pairs)
    report = Report("Customer service, before and after PPO", f"{NAME}; {pairs} held-out messages that no stage saw.")
    report.add(
        "Summary", summary(results.comparison),
        "PPO was trained against the proxy reward model. The gold one learnt from other comparisons and only judges: "
        "where it does not follow, the proxy was exploited.",
    )  # fmt: skip
    report.add("PPO", training(results.ppo_metrics, HEADLINES))
    (_, proxy), *others = results.proxy.accuracies
    rows = [("proxy reward model", proxy), ("gold reward model", results.gold.accuracy), *others]
    report.add("Reward models on held-out pairs", accuracies(rows), length_note(results.proxy))
    report.add("Calibration of the proxy", calibration_section(results.proxy))
    report.add("Before and after", examples(results.comparison))
    return report.write(path)


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
