"""The native `whiten_`, against the formula in float64."""

from __future__ import annotations

import math

import pytest
import torch

from tests.kernels.by_backend import native
from tests.kernels.column_cases import (
    assert_as_accurate_as_torch,
    assert_independent_of_threads,
    each_dtype,
    needs_native,
)

pytestmark = needs_native


def random(entries, dtype, *, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(entries, generator=g, dtype=dtype) * 3 + 5, torch.rand(entries, generator=g) < 0.7


def plain(x, mask, *, shift_mean=True, ddof=1, eps=1e-8):
    """The formula in x's own dtype; what is outside the mask stays."""
    chosen = x if mask is None else x[mask]
    whitened = (chosen - chosen.mean()) / (chosen.var(correction=ddof) + eps).sqrt()
    whitened = whitened if shift_mean else whitened + chosen.mean()
    return whitened if mask is None else x.masked_scatter(mask, whitened)


def whitened(x, mask=None, *, moments=None, shift_mean=True, ddof=1, eps=1e-8):
    x = x.clone()
    args = {"x": x, "mask": mask, "moments": moments, "shift_mean": shift_mean, "ddof": ddof, "eps": eps}
    assert native.refusal("whiten_", **args) is None
    native.whiten_(**args)
    return x


@each_dtype
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("settings", [{}, {"shift_mean": False}, {"ddof": 0, "eps": 0.5}])
@pytest.mark.parametrize("entries", [6, 4095, 4097, 20000])
def test_it_is_as_accurate_as_the_formula_in_torch(dtype, masked, settings, entries):
    x, mask = random(entries, dtype)
    mask = mask if masked else None
    exact = plain(x.double(), mask, **settings)
    assert_as_accurate_as_torch(whitened(x, mask, **settings), plain(x, mask, **settings), exact)


@each_dtype
def test_entries_outside_the_mask_are_neither_counted_nor_touched(dtype):
    x, mask = random(5000, dtype)
    x[~mask] = math.nan
    x[(~mask).nonzero()[0]] = 1e6
    got, alone = whitened(x, mask), whitened(x[mask])
    torch.testing.assert_close(got[mask], alone, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got[~mask], x[~mask], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("values", "ddof"), [([], 0), ([], 1), ([5.0], 1), ([5.0, 7.0], 2)])
def test_too_few_entries_stay_as_they_are(values, ddof):
    assert whitened(torch.tensor(values), ddof=ddof).tolist() == values
    padded = torch.tensor([9.0, *values])
    mask = torch.arange(len(padded)) > 0
    assert whitened(padded, mask, ddof=ddof).tolist() == padded.tolist()


@each_dtype
def test_given_moments_are_used_in_place_of_its_own(dtype):
    x = torch.tensor([4.0, 7.0], dtype=dtype)
    given = torch.tensor([9.0, 3.0, 32.0], dtype=torch.float64)  # variance 4
    assert whitened(x, moments=given, eps=0.0).tolist() == [0.5, 2.0]
    assert whitened(x, moments=given, eps=0.0, shift_mean=False).tolist() == [3.5, 5.0]
    assert whitened(x, torch.tensor([False, True]), moments=given, eps=12.0).tolist() == [4.0, 1.0]
    assert whitened(x, moments=given, ddof=9).tolist() == [4.0, 7.0]
    given = torch.tensor([1.5, 3.0, 4.0], dtype=torch.float64)  # a variance over at least one degree of freedom
    assert whitened(x, moments=given, eps=0.0).tolist() == [0.5, 2.0]


def test_equal_entries_become_zero():
    assert whitened(torch.full((5000,), 3.0)).tolist() == [0.0] * 5000


@each_dtype
@pytest.mark.parametrize("masked", [False, True])
def test_the_number_of_threads_changes_nothing(dtype, masked):
    x, mask = random(200_003, dtype)
    assert_independent_of_threads(lambda: (whitened(x, mask if masked else None),))


def test_a_strided_view_is_refused():
    assert "x is not contiguous" in native.refusal("whiten_", **{"x": torch.zeros(4, 2)[:, 0]})
