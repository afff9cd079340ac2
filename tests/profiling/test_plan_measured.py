"""Plans beside what runs of a process each really took: three of the cases of `benchmarks.plan_error`."""

from __future__ import annotations

import platform

import pytest

from benchmarks.plan_error import Case, compare
from tests.tiny_tokenizer import tiny_tokenizer

CASES = [
    Case("llama", True, False, 60, 20, 2048),
    Case("llama", True, True, 60, 20, 2048),
    Case("llama", False, False, 60, 20, 2048),
]
NEGLIGIBLE = 4e6
"""Bytes: of a phase that asks for little more than weights."""


@pytest.mark.skipif(platform.system() != "Linux", reason="it reads what Linux says of a process")
def test_peaks_are_within_5_percent_and_phases_within_10(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    for pair in compare(CASES, str(tmp_path / "tokenizer"), tmp_path):
        for name, (predicted, measured) in pair.errors.items():
            allowed = 0.05 * measured if name == "peak" else max(0.1 * measured, NEGLIGIBLE)
            assert abs(predicted - measured) <= allowed, (pair.name, name, predicted, measured)
        assert pair.predicted.peak.low <= pair.peak <= pair.predicted.peak.high
