"""What `whiten_` promises, against numpy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rlhf_kernels import merge_moments, moments, whiten_


def test_three_numbers_whitened_by_hand():
    x = torch.tensor([1.0, 2.0, 3.0])
    whiten_(x)
    assert x.tolist() == pytest.approx([-1, 0, 1])  # sample variance 1


def test_ddof_0_divides_by_the_population_deviation():
    x = torch.tensor([1.0, 2.0, 3.0])
    whiten_(x, ddof=0)
    assert x.tolist() == pytest.approx([-math.sqrt(1.5), 0, math.sqrt(1.5)])


def test_bug_11_shifting_the_mean_leaves_mean_zero():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 3 + 50
    whiten_(x)
    assert x.double().mean().item() == pytest.approx(0, abs=1e-5)
    assert x.double().std().item() == pytest.approx(1, abs=1e-5)


def test_without_shift_the_mean_is_kept_and_the_scale_changes():
    x = torch.tensor([8.0, 10.0, 12.0])
    whiten_(x, shift_mean=False)
    assert x.tolist() == pytest.approx([9, 10, 11])


def test_bug_11_masked_entries_are_neither_counted_nor_touched():
    x = torch.tensor([1.0, 1e6, 2.0, math.nan, 3.0])
    mask = torch.tensor([True, False, True, False, True])
    whiten_(x, mask=mask)
    assert x[mask].tolist() == pytest.approx([-1, 0, 1])
    assert x[1] == 1e6 and x[3].isnan()


@pytest.mark.parametrize(("values", "ddof"), [([], 1), ([5.0], 1), ([], 0), ([5.0, 7.0], 2)])
def test_too_few_entries_stay_as_they_are(values, ddof):
    x = torch.tensor(values)
    whiten_(x, ddof=ddof)
    assert x.tolist() == values


def test_one_masked_in_entry_stays_as_it_is():
    x = torch.tensor([5.0, 9.0])
    whiten_(x, mask=torch.tensor([True, False]))
    assert x.tolist() == [5.0, 9.0]


def test_equal_entries_become_zero_not_nan():
    x = torch.full((4,), 3.0)
    whiten_(x)
    assert x.tolist() == [0.0] * 4


def test_eps_is_added_to_the_variance_not_to_the_deviation():
    x = torch.tensor([-1e-4, 1e-4], dtype=torch.float64)
    whiten_(x, ddof=0)
    assert x.tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5])  # 1e-4 / sqrt(1e-8 + 1e-8)


def test_given_moments_of_a_larger_batch_are_used():
    parts = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0, 10.0])]
    whole = torch.cat(parts).double().numpy()
    shared = merge_moments(*(moments(part) for part in parts))
    for part in parts:
        whiten_(part, moments=shared)
    np.testing.assert_allclose(torch.cat(parts), (whole - whole.mean()) / np.sqrt(whole.var(ddof=1) + 1e-8), rtol=1e-6)


def test_moments_of_a_larger_batch_whiten_even_a_single_local_entry():
    x = torch.tensor([4.0])
    whiten_(x, moments=moments(torch.tensor([2.0, 3.0, 4.0])))
    assert x.tolist() == pytest.approx([1.0])


def test_a_strided_view_is_whitened_in_place():
    base = torch.tensor([[1.0, 70.0], [2.0, 80.0], [3.0, 90.0]])
    whiten_(base[:, 0])
    assert base.tolist() == [pytest.approx([-1, 70]), pytest.approx([0, 80]), pytest.approx([1, 90])]


def test_bf16_is_refused():
    with pytest.raises(TypeError, match=r"torch.bfloat16, expected float32"):
        whiten_(torch.ones(3, dtype=torch.bfloat16))


def test_a_negative_ddof_is_refused():
    with pytest.raises(ValueError, match="ddof is -1"):
        whiten_(torch.ones(3), ddof=-1)
