"""The native `moments`, against exact sums of float64 numbers."""

from __future__ import annotations

import math

import pytest
import torch

from tests.kernels.by_backend import native
from tests.kernels.column_cases import assert_independent_of_threads, each_dtype, needs_native

pytestmark = needs_native


def exact(x, mask):
    """Count, mean and sum of squared deviations with sums that do not round."""
    entries = x.double().flatten().tolist() if mask is None else x.double()[mask].tolist()
    mean = math.fsum(entries) / max(len(entries), 1)
    return [len(entries), mean, math.fsum((e - mean) ** 2 for e in entries)]


def random(entries, dtype, *, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(entries, generator=g, dtype=dtype) * 3 + 5, torch.rand(entries, generator=g) < 0.7


@each_dtype
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("entries", [0, 1, 2, 7, 8, 9, 4095, 4096, 4097, 20000])
def test_it_equals_the_exact_sums(dtype, masked, entries):
    x, mask = random(entries, dtype)
    mask = mask if masked else None
    args = {"x": x, "mask": mask}
    assert native.refusal("moments", **args) is None
    out = native.moments(**args)
    assert out.dtype == torch.float64 and out.tolist() == pytest.approx(exact(x, mask), rel=1e-13, abs=1e-13)


@each_dtype
def test_entries_outside_the_mask_may_be_nan_or_infinite(dtype):
    x, mask = random(5000, dtype)
    x[~mask] = math.nan
    x[(~mask).nonzero()[0]] = -math.inf
    assert native.moments(x=x, mask=mask).tolist() == pytest.approx(exact(x, mask), rel=1e-13)


def test_a_nan_that_counts_comes_through():
    count, mean, m2 = native.moments(x=torch.tensor([1.0, math.nan]), mask=None).tolist()
    assert count == 2 and math.isnan(mean) and math.isnan(m2)


def test_of_nothing_all_three_are_zero():
    assert native.moments(x=torch.full((5000,), math.nan), mask=torch.zeros(5000, dtype=torch.bool)).tolist() == [0] * 3


def test_a_large_mean_does_not_drown_a_small_variance():
    """Their squares differ by less than float64 resolves."""
    x = torch.tensor([1e8, 1e8 + 1] * 5000, dtype=torch.float64)
    assert native.moments(x=x, mask=None)[2].item() == pytest.approx(2500)


def test_any_shape_will_do():
    x, mask = random(24, torch.float32)
    assert torch.equal(native.moments(x=x.view(2, 3, 4), mask=mask.view(2, 3, 4)), native.moments(x=x, mask=mask))


@each_dtype
@pytest.mark.parametrize("masked", [False, True])
def test_the_number_of_threads_changes_nothing(dtype, masked):
    x, mask = random(200_003, dtype)
    assert_independent_of_threads(lambda: (native.moments(x=x, mask=mask if masked else None),))


def test_what_it_cannot_take_is_refused():
    assert "x has dtype torch.bfloat16" in native.refusal("moments", **{"x": torch.zeros(2).bfloat16(), "mask": None})
    strided = torch.ones(4, 2, dtype=torch.bool)[:, 0]
    assert "mask is not contiguous" in native.refusal("moments", **{"x": torch.zeros(4), "mask": strided})
