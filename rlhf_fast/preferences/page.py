"""The page of a reward model: its run, accuracy beside the rules that only look at length, and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlhf_fast.preferences.fit import Evaluation
from rlhf_fast.report.page import Report, run_report
from rlhf_fast.report.sections import accuracies, calibration


def build_report(
    name: str, facts: Mapping[str, str], metrics: Sequence[Mapping[str, float]], evaluation: Evaluation | None
) -> Report:
    """facts: what the run was, in words, by topic; metrics: the rows of metrics.jsonl; evaluation: None without
    held-out comparisons."""
    measured = f"measured on {evaluation.accuracy.count:,} held-out pairs" if evaluation else "nothing held out"
    report = run_report(name, f"A reward model, {measured}.", facts, metrics)
    if evaluation:
        report.add("Accuracy on held-out pairs", accuracies(evaluation.accuracies), length_note(evaluation))
        report.add("Calibration", calibration_section(evaluation))
    return report


def calibration_section(evaluation: Evaluation) -> str:
    return calibration([(b.predicted, b.observed, b.count) for b in evaluation.calibration.bins])


def length_note(evaluation: Evaluation) -> str:
    value = evaluation.length_controlled.value
    if value is None:
        return "There are no pairs of both kinds, so accuracy cannot be controlled for length."
    return f"Length-controlled accuracy {value:.3f}: the mean over pairs that the longer, and the shorter response won."
