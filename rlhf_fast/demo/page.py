"""The report of a demonstration: what PPO changed, how it trained, what the reward models are worth, both answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlhf_fast.demo.base_model import NAME
from rlhf_fast.evaluate.compare import Comparison
from rlhf_fast.evaluate.run import examples, summary
from rlhf_fast.preferences.metrics import Evaluation
from rlhf_fast.preferences.reward_model import calibration_section, length_note
from rlhf_fast.report.page import Report
from rlhf_fast.report.sections import HEADLINES, accuracies, training


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
