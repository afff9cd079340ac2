"""Accuracy, its interval, the rules that only look at length, and calibration."""

from __future__ import annotations

import math

import pytest

from rlhf_fast.data.schema import Comparison
from rlhf_fast.preferences.metrics import (
    Pair,
    accuracy,
    calibration,
    distinct_words,
    length_controlled_accuracy,
    rule_accuracy,
    strict_pairs,
)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_a_score_tie_counts_half_and_no_pairs_are_refused():
    assert accuracy([1.0, -1.0, 0.0, 2.0]).value == 2.5 / 4
    with pytest.raises(ValueError, match="expected 0 <= successes"):
        accuracy([])


def test_strict_pairs_leave_out_ties_and_put_the_better_first():
    row = Comparison("p", ("a", "b", "c"), (2, 1, 2))
    assert strict_pairs(row, [0.5, 3.0, 1.0]) == [Pair("b", "a", 2.5), Pair("b", "c", 2.0)]


def test_the_probability_of_a_pair_is_that_of_its_better_response():
    assert strict_pairs(Comparison("p", ("a", "b"), (2, 1), 0.25), [0.0, 1.0]) == [Pair("b", "a", 1.0, 0.75)]


def test_a_rule_of_length_alone_has_a_length_controlled_accuracy_of_one_half():
    texts = [("long one", "short"), ("a longer", "b"), ("cc", "d"), ("e", "longer than e")]
    pairs = [Pair(better, worse, float(len(better) - len(worse))) for better, worse in texts]
    found = length_controlled_accuracy(pairs)
    assert accuracy([p.margin for p in pairs]).value == 0.75
    assert found.value == 0.5
    assert found.better_is_longer is not None and found.better_is_longer.count == 3


def test_length_control_ignores_equal_lengths_and_needs_both_groups():
    found = length_controlled_accuracy([Pair("aa", "b", 1.0), Pair("a", "b", -1.0)])
    assert (found.value, found.better_is_shorter) == (None, None)
    assert found.better_is_longer is not None and found.better_is_longer.value == 1


def test_rules_on_the_same_pairs():
    pairs = [Pair("one two three", "four four four four", 0.0), Pair("a b", "c", 0.0), Pair("x", "y", 0.0)]
    assert rule_accuracy(pairs, len).value == 1.5 / 3
    assert rule_accuracy(pairs, distinct_words).value == 2.5 / 3
    assert distinct_words("Yes yes  no") == 2


def test_calibration_by_hand():
    # three pairs predicted at .83 of which two are right, one at .55 that is wrong
    pairs = [Pair("a", "b", logit(0.83))] * 2 + [Pair("a", "b", -logit(0.83)), Pair("a", "b", -logit(0.55))]
    table = calibration(pairs, bins=5)
    assert [(b.count, b.low, b.high) for b in table.bins] == [
        (1, 0.5, 0.6), (3, pytest.approx(0.8), pytest.approx(0.9)),
    ]  # fmt: skip
    assert [b.observed for b in table.bins] == [0.0, pytest.approx(2 / 3)]
    assert [b.predicted for b in table.bins] == [pytest.approx(0.55), pytest.approx(0.83)]
    assert table.error == pytest.approx((1 * 0.55 + 3 * (0.83 - 2 / 3)) / 4)


def test_uncertain_labels_that_are_predicted_as_uncertain_are_well_calibrated():
    assert calibration([Pair("a", "b", logit(0.7), 0.7)] * 3).error == pytest.approx(0)
