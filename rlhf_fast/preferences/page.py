"""The page of a reward model: accuracy beside the rules that only look at length, and calibration."""

from __future__ import annotations

from rlhf_fast.preferences.fit import Evaluation
from rlhf_fast.report.page import Report
from rlhf_fast.report.sections import accuracies, calibration


def build_report(name: str, evaluation: Evaluation) -> Report:
    report = Report(name, f"A reward model on {evaluation.accuracy.count} held-out pairs.")
    report.add("Accuracy", accuracies(evaluation.accuracies), length_note(evaluation))
    report.add("Calibration", calibration_section(evaluation))
    return report


def calibration_section(evaluation: Evaluation) -> str:
    return calibration([(b.predicted, b.observed, b.count) for b in evaluation.calibration.bins])


def length_note(evaluation: Evaluation) -> str:
    value = evaluation.length_controlled.value
    if value is None:
        return "There are no pairs of both kinds, so accuracy cannot be controlled for length."
    return f"Length-controlled accuracy {value:.3f}: the mean over pairs that the longer, and the shorter response won."
