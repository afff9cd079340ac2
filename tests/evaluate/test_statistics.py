"""Intervals and diversity by hand."""

from __future__ import annotations

import math

import pytest

from rlhf_fast.evaluate.compare import behaviour
from rlhf_fast.rollout.engine import Response
from rlhf_fast.rollout.rollout import distinct_n, repetition
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.statistics import mean_difference, over_optimised, wilson, win_rate


def test_wilson_interval_by_hand():
    # p = .7, n = 10, z^2 = 3.84146: centre (.7 + .192073) / 1.384146, half 1.959964 sqrt(.021 + .0096036) / 1.384146
    interval = wilson(7, 10)
    assert (interval.value, interval.count) == (0.7, 10)
    assert interval.low == pytest.approx(0.396778, abs=1e-5)
    assert interval.high == pytest.approx(0.892210, abs=1e-5)
    # no success in four: from 0 to z^2 / (n + z^2)
    assert wilson(0, 4).low == 0 and wilson(0, 4).high == pytest.approx(3.841459 / 7.841459, abs=1e-6)
    assert wilson(4, 4).high == 1


def test_win_rate_counts_second_over_first_and_ties_half():
    interval = win_rate([0.0, 1.0, 2.0, 0.0], [1.0, 1.0, 1.0, 3.0])
    assert interval.value == 2.5 / 4
    assert interval == wilson(2.5, 4)


def test_mean_difference_is_paired():
    # differences 1, 2, 3, 6: mean 3, variance (4 + 1 + 0 + 9) / 3, standard error sqrt(14 / 12)
    interval = mean_difference([10.0, -5.0, 0.0, 2.0], [11.0, -3.0, 3.0, 8.0])
    assert interval.value == 3
    assert interval.high - 3 == pytest.approx(1.959964 * math.sqrt(14 / 12), abs=1e-5)
    assert 3 - interval.low == pytest.approx(interval.high - 3)
    assert mean_difference([0.0], [2.0]).high == math.inf


@pytest.mark.parametrize("call", [lambda: wilson(1, 0), lambda: wilson(3, 2), lambda: mean_difference([], [])])
def test_no_observations_is_an_error(call):
    with pytest.raises(UsageError, match="expected"):
        call()


@pytest.mark.parametrize(
    ("proxy", "gold", "expected"), [(1.0, -0.1, True), (1.0, 0.1, False), (-1.0, -0.1, False), (0.0, -1.0, False)]
)
def test_over_optimised_is_proxy_up_and_gold_down(proxy, gold, expected):
    assert over_optimised(proxy, gold) is expected


def test_distinct_n_counts_over_all_responses():
    # 2-grams: 12 23 | 12 24 -> three different ones of four
    assert distinct_n([[1, 2, 3], [1, 2, 4]], 2) == 0.75
    assert math.isnan(distinct_n([[1]], 2))


def test_repetition_is_within_a_response():
    # 121 212 121 -> one of three repeats; 123 has none; too short does not count
    assert repetition([[1, 2, 1, 2, 1], [1, 2, 3], [9]]) == pytest.approx(1 / 6)
    assert repetition([[1, 2, 3], [1, 2, 3]]) == 0


def test_behaviour_of_responses():
    found = behaviour([Response([1, 2, 3], finished=True), Response([1, 2, 1, 2, 1], finished=False)])
    assert (found.mean_length, found.truncated_fraction) == (4, 0.5)
    assert found.distinct_2 == 0.5  # 12 23 | 12 21 12 21 -> 12 23 21 of six
    assert found.repetition == pytest.approx(1 / 6)
