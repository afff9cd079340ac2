"""What `moments` and `merge_moments` promise, against numpy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_kernels import merge_moments, moments


def test_moments_of_four_numbers():
    assert [m.item() for m in moments(torch.tensor([1.0, 2.0, 3.0, 6.0]))] == [4, 3, 14]


def test_results_are_float64_scalars():
    assert all(m.dtype == torch.float64 and m.shape == () for m in moments(torch.ones(3, dtype=torch.bfloat16)))


def test_bug_11_masked_entries_do_not_count_even_when_they_are_nan():
    x = torch.tensor([[1.0, math.nan], [3.0, math.inf]])
    assert [m.item() for m in moments(x, mask=torch.tensor([[True, False], [True, False]]))] == [2, 2, 2]


@pytest.mark.parametrize("mask", [None, torch.zeros(0, dtype=torch.bool)])
def test_moments_of_nothing_are_zero(mask):
    assert [m.item() for m in moments(torch.zeros(0), mask=mask)] == [0, 0, 0]
    assert [m.item() for m in moments(torch.ones(3), mask=torch.zeros(3, dtype=torch.bool))] == [0, 0, 0]


def test_a_large_mean_does_not_drown_a_small_variance():
    """In float32, or by E[x^2] - E[x]^2, the variance of 1e6 + {0, 1} is lost."""
    x = torch.tensor([1e6, 1e6 + 1] * 1000)
    assert moments(x).m2.item() == pytest.approx(500)


@given(
    parts=st.lists(st.lists(st.floats(-1e3, 1e3), max_size=8), min_size=1, max_size=5),
    shift=st.sampled_from([0.0, 1e5]),
)
def test_merged_parts_equal_the_whole(parts, shift):
    tensors = [torch.tensor(part, dtype=torch.float64) + shift for part in parts]
    merged = moments(tensors[0])
    for part in tensors[1:]:
        merged = merge_moments(merged, moments(part))
    whole = torch.cat(tensors).numpy()
    assert merged.count.item() == len(whole)
    if len(whole):
        np.testing.assert_allclose(merged.mean, whole.mean(), atol=1e-8)
        np.testing.assert_allclose(merged.m2, ((whole - whole.mean()) ** 2).sum(), rtol=1e-9, atol=1e-6)


def test_merging_nothing_with_nothing_gives_nothing():
    nothing = moments(torch.zeros(0))
    assert [m.item() for m in merge_moments(nothing, nothing)] == [0, 0, 0]


def test_a_mask_that_is_not_bool_is_refused():
    with pytest.raises(TypeError, match=r"mask has dtype .* expected bool"):
        moments(torch.ones(3), mask=torch.ones(3))
