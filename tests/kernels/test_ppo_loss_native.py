"""The reference of `ppo_loss`, and the native one at every instruction set: metrics and gradients against autograd of
the formulas in float64, ties included."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_kernels import extension
from tests.kernels.by_backend import native, reference
from tests.kernels.column_cases import (
    assert_as_accurate_as_torch,
    assert_independent_of_threads,
    needs_native,
)
from tests.kernels.logprob_cases import LEVELS
from tests.kernels.ppo_loss_cases import COLUMNS, PLAIN, autograd, columns, slot

pytestmark = needs_native
KINDS = [
    *((name, dtype, "reference") for name, dtype in (("fp64", torch.float64), ("fp32", torch.float32))),
    ("fp64", torch.float64, extension.LEVEL),
    *(("fp32", torch.float32, level) for level in LEVELS),
]
BACKEND = {"of this test": native}


def each(kinds):
    parameters = [pytest.param(dtype, level, id=f"{name}-{level}") for name, dtype, level in kinds]
    return pytest.mark.parametrize(("dtype", "level"), parameters)


each_kind, each_native_kind = each(KINDS), each([kind for kind in KINDS if kind[2] != "reference"])
SETTINGS = [
    PLAIN,
    PLAIN | {"cliprange_value": None, "entropy_coef": 0.01},
    PLAIN | {"dual_clip": 1.1, "log_ratio_clamp": 0.3},
    PLAIN | {"denominator": torch.tensor(7.0), "value_denominator": torch.tensor(11), "vf_coef": 2.0},
]


@pytest.fixture(autouse=True)
def forced_level(request, monkeypatch):
    if "level" in request.fixturenames:
        level = request.getfixturevalue("level")
        if level == "reference":
            monkeypatch.setitem(BACKEND, "of this test", reference)
        else:
            monkeypatch.setattr(extension, "LEVEL", level)


def run(c, settings):
    args = c | settings
    backend = BACKEND["of this test"]
    assert backend.refusal("ppo_loss", **args) is None
    return backend.ppo_loss(**args)


def assert_as_accurate(c, settings):
    plain, exact = (autograd(c, dtype, settings) for dtype in (c["logprobs"].dtype, torch.float64))
    results = zip(run(c, settings), plain, exact, strict=False)  # autograd gives none for an entropy that is absent
    metrics = zip(*next(results), strict=True)  # each on its own scale
    for triple in (*metrics, *results):
        assert_as_accurate_as_torch(*triple)


@each_kind
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("slots", [0, 1, 2, 61, 4096, 9000])
def test_metrics_and_gradients_are_those_of_autograd(dtype, level, settings, slots):
    assert_as_accurate(columns(slots, dtype), settings)


@each_kind
@pytest.mark.parametrize("absent", [("mask", "value_mask"), ("value_mask",), ("mask",)])
def test_optional_columns_may_be_absent(dtype, level, absent):
    c = {
        name: column if column.dtype == torch.bool else column.nan_to_num(0.5)
        for name, column in columns(61, dtype).items()
    }
    without = c | dict.fromkeys((*absent, "entropy", "weight"))
    assert_as_accurate(without, PLAIN)
    metrics, _, _, d_entropy = run(without, PLAIN)
    assert metrics[3] == 0 and d_entropy.shape == (0,)


def bound(log_ratio, dtype):
    """The ratio that the kernel has at this log-ratio, and the clip range that ends there."""
    ratio = -16 * run(slot(dtype, logprobs=log_ratio, advantages=1.0), PLAIN | {"cliprange": 2.0})[1][0].item()
    assert ratio == pytest.approx(math.exp(log_ratio), rel=torch.finfo(dtype).eps)
    return ratio, abs(ratio - 1)


@each_kind
@pytest.mark.parametrize("log_ratio", [0.5, -0.5])
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_on_a_bound_of_the_clip_range_the_whole_gradient_passes(dtype, level, log_ratio, advantage):
    ratio, cliprange = bound(log_ratio, dtype)
    c = slot(dtype, logprobs=log_ratio, advantages=advantage)
    settings = PLAIN | {"cliprange": cliprange}
    assert run(c, settings)[1].tolist() == [-advantage * ratio / 16] * 16
    if dtype == torch.float64:  # where torch's ratio is the same
        assert_as_accurate(c, settings)


@each_kind
def test_on_the_dual_clip_half_of_the_gradient_passes_and_on_the_log_ratio_clamp_all_of_it(dtype, level):
    ratio, _ = bound(0.5, dtype)
    c = slot(dtype, logprobs=0.5, advantages=-2.0)
    assert run(c, PLAIN | {"dual_clip": ratio})[1].tolist() == [2 * ratio / 2 / 16] * 16
    assert run(c, PLAIN | {"log_ratio_clamp": 0.5})[1].tolist() == [2 * ratio / 16] * 16
    assert run(c, PLAIN | {"log_ratio_clamp": 0.499})[1].tolist() == [0.0] * 16
    for change in ({"dual_clip": ratio}, {"log_ratio_clamp": 0.5}, {"log_ratio_clamp": 0.499}):
        if dtype == torch.float64:
            assert_as_accurate(c, PLAIN | change)


@each_kind
@pytest.mark.parametrize(
    ("value", "target", "gradient"),
    [(1.0, 0.75, 0.125), (0.5, 2.0, -1.5), (0.0, 2.0, -2.0), (1.0, 2.0, 0.0), (1.0, 0.0, 1.0)],
)
def test_value_gradients_on_ties_and_bounds(dtype, level, value, target, gradient):
    """v_old 0, c 0.5: errors of equal size around the target; a value on the bound, as of old, clipped, or not."""
    c, settings = slot(dtype, values=value, returns=target), PLAIN | {"cliprange_value": 0.5, "vf_coef": 16.0}
    assert run(c, settings)[2].tolist() == [gradient] * 16
    assert_as_accurate(c, settings)


@each_kind
def test_the_ratio_is_exact_to_some_roundings_from_the_smallest_number_to_the_largest(dtype, level):
    """A slot's gradient is its ratio where the plain loss counts: for A = 1 below ratio 1, for A = -1 above it."""
    special = [0.0, -0.0, math.inf, -math.inf, math.nan, 88.72, 88.73, 400.0, -87.4, -103.9, -105.0, -400.0]
    x = torch.cat([torch.tensor(special, dtype=dtype), torch.linspace(-110, 90, 20_001, dtype=dtype)])
    zero = torch.zeros_like(x)
    c = dict.fromkeys(COLUMNS[:6], zero) | dict.fromkeys((*COLUMNS[6:], "mask", "value_mask"))
    sign = torch.where(x > 0, 1.0, -1.0).to(dtype)
    got = run(c | {"logprobs": x, "advantages": -sign}, PLAIN | {"denominator": torch.tensor(1.0)})[1] * sign
    exact = x.double().exp()
    allowed = 2 * torch.finfo(dtype).eps * exact + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    rounded = exact.to(dtype)  # where this is infinite so is the result
    same = (got == rounded) | (got.isnan() & rounded.isnan()) | ((got.double() - exact).abs() <= allowed)
    assert same.all(), (x[~same], got[~same], exact[~same])
    assert got[0] == got[1] == 1


@each_kind
def test_without_a_valid_slot_all_is_zero(dtype, level):
    c = columns(50, dtype) | {"mask": torch.zeros(50, dtype=torch.bool), "value_mask": None}
    assert not any(result.any() for result in run(c, PLAIN))


@each_kind
@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[2]])
def test_a_nan_that_counts_reaches_the_loss(dtype, level, settings):
    for name in COLUMNS[:6]:
        c = slot(dtype, advantages=-1.0, values=1.0)
        c[name][5] = math.nan
        assert run(c, settings)[0][0].isnan(), name


@each_native_kind
def test_the_number_of_threads_changes_nothing(dtype, level):
    c = columns(50_001, dtype)
    assert_independent_of_threads(lambda: run(c, SETTINGS[2]))


def test_what_it_cannot_take_is_refused():
    c = columns(4, torch.float32)
    assert "columns of one dtype" in native.refusal("ppo_loss", **(c | {"returns": c["returns"].double()}))
    assert "weight is not contiguous" in native.refusal("ppo_loss", **(c | {"weight": torch.zeros(4, 2)[:, 0]}))
