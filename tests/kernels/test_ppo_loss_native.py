"""The native `ppo_loss`: metrics and gradients against autograd of the formulas in float64, ties included."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_kernels.ppo_loss import native
from tests.kernels.column_cases import (
    assert_as_accurate_as_torch,
    assert_independent_of_threads,
    each_dtype,
    needs_native,
)
from tests.kernels.ppo_loss_cases import COLUMNS, PLAIN, autograd, columns, slot

pytestmark = needs_native
SETTINGS = [
    PLAIN,
    PLAIN | {"cliprange_value": None, "entropy_coef": 0.01},
    PLAIN | {"dual_clip": 1.1, "log_ratio_clamp": 0.3},
    PLAIN | {"denominator": torch.tensor(7.0), "value_denominator": torch.tensor(11), "vf_coef": 2.0},
]


def run(c, settings):
    args = c | settings
    assert native.supports(args) is None
    return native.ppo_loss(**args)


def assert_as_accurate(c, settings):
    plain, exact = (autograd(c, dtype, settings) for dtype in (c["logprobs"].dtype, torch.float64))
    results = zip(run(c, settings), plain, exact, strict=False)  # autograd gives none for an entropy that is absent
    metrics = zip(*next(results), strict=True)  # each on its own scale
    for triple in (*metrics, *results):
        assert_as_accurate_as_torch(*triple)


@each_dtype
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("slots", [0, 1, 2, 61, 4096, 9000])
def test_metrics_and_gradients_are_those_of_autograd(dtype, settings, slots):
    assert_as_accurate(columns(slots, dtype), settings)


@each_dtype
@pytest.mark.parametrize("absent", [("mask", "value_mask"), ("value_mask",), ("mask",)])
def test_optional_columns_may_be_absent(dtype, absent):
    c = {
        name: column if column.dtype == torch.bool else column.nan_to_num(0.5)
        for name, column in columns(61, dtype).items()
    }
    without = c | dict.fromkeys((*absent, "entropy", "weight"))
    assert_as_accurate(without, PLAIN)
    metrics, _, _, d_entropy = run(without, PLAIN)
    assert metrics[3] == 0 and d_entropy.shape == (0,)


def bound(log_ratio):
    """A ratio that exp gives exactly, and the clip range that ends there."""
    ratio = torch.exp(torch.full((16,), log_ratio, dtype=torch.float64))[0].item()
    assert ratio == math.exp(log_ratio)
    return ratio, abs(ratio - 1)


@pytest.mark.parametrize("log_ratio", [0.5, -0.5])
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_on_a_bound_of_the_clip_range_the_whole_gradient_passes(log_ratio, advantage):
    ratio, cliprange = bound(log_ratio)
    c = slot(logprobs=log_ratio, advantages=advantage)
    settings = PLAIN | {"cliprange": cliprange}
    assert run(c, settings)[1].tolist() == [-advantage * ratio / 16] * 16
    assert_as_accurate(c, settings)


def test_on_the_dual_clip_half_of_the_gradient_passes_and_on_the_log_ratio_clamp_all_of_it():
    ratio, _ = bound(0.5)
    c = slot(logprobs=0.5, advantages=-2.0)
    assert run(c, PLAIN | {"dual_clip": ratio})[1].tolist() == [2 * ratio / 2 / 16] * 16
    assert run(c, PLAIN | {"log_ratio_clamp": 0.5})[1].tolist() == [2 * ratio / 16] * 16
    assert run(c, PLAIN | {"log_ratio_clamp": 0.499})[1].tolist() == [0.0] * 16
    for change in ({"dual_clip": ratio}, {"log_ratio_clamp": 0.5}, {"log_ratio_clamp": 0.499}):
        assert_as_accurate(c, PLAIN | change)


@pytest.mark.parametrize(
    ("value", "target", "gradient"),
    [(1.0, 0.75, 0.125), (0.5, 2.0, -1.5), (0.0, 2.0, -2.0), (1.0, 2.0, 0.0), (1.0, 0.0, 1.0)],
)
def test_value_gradients_on_ties_and_bounds(value, target, gradient):
    """v_old 0, c 0.5: errors of equal size around the target; a value on the bound, as of old, clipped, or not."""
    c, settings = slot(values=value, returns=target), PLAIN | {"cliprange_value": 0.5, "vf_coef": 16.0}
    assert run(c, settings)[2].tolist() == [gradient] * 16
    assert_as_accurate(c, settings)


@each_dtype
def test_without_a_valid_slot_all_is_zero(dtype):
    c = columns(50, dtype) | {"mask": torch.zeros(50, dtype=torch.bool), "value_mask": None}
    assert not any(result.any() for result in run(c, PLAIN))


def test_a_nan_that_counts_reaches_the_loss():
    for name in COLUMNS[:6]:
        assert run(slot(**{name: math.nan}), PLAIN)[0][0].isnan(), name


@each_dtype
def test_the_number_of_threads_changes_nothing(dtype):
    c = columns(50_001, dtype)
    assert_independent_of_threads(lambda: run(c, SETTINGS[2]))


def test_what_it_cannot_take_is_refused():
    c = columns(4, torch.float32)
    assert "columns of one dtype" in native.supports(c | {"returns": c["returns"].double()})
    assert "weight is not contiguous" in native.supports(c | {"weight": torch.zeros(4, 2)[:, 0]})
