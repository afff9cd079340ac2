"""The native `gae_`: equal to the reference to the last bit, whatever the lengths of the sequences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_kernels import gae_
from tests.kernels.column_cases import assert_independent_of_threads, each_dtype, needs_native, offsets

pytestmark = needs_native


def columns(lengths, dtype, *, seed=0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    rewards, values = (scale * torch.randn(2, sum(lengths), generator=g, dtype=torch.float64)).to(dtype)
    return rewards, values, (scale * torch.randn(len(lengths), generator=g, dtype=torch.float64)).to(dtype)


def run(lengths, dtype, backend="native", *, bootstrapped=True, gamma=0.99, lam=0.95, **given):
    rewards, values, bootstrap = columns(lengths, dtype, **given)
    bootstrap = bootstrap if bootstrapped else None
    returns = gae_(rewards, values, offsets(lengths), gamma=gamma, lam=lam, bootstrap=bootstrap, backend=backend)
    return rewards, returns


def assert_equals_the_reference(*args, **kwargs):
    got, expected = (run(*args, backend=backend, **kwargs) for backend in ("native", "reference"))
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@each_dtype
@given(
    lengths=st.lists(st.integers(0, 20), max_size=9),
    bootstrapped=st.booleans(),
    gamma=st.sampled_from([0.0, 0.99, 1.0]),
    seed=st.integers(0, 99),
)
def test_it_equals_the_reference_to_the_last_bit(dtype, lengths, bootstrapped, gamma, seed):
    assert_equals_the_reference(lengths, dtype, bootstrapped=bootstrapped, gamma=gamma, seed=seed)


@each_dtype
def test_so_do_huge_rewards_and_values(dtype):
    assert_equals_the_reference([40, 7], dtype, scale=1e30)


@each_dtype
@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0], [1], [1] * 5, [0, 900, 0, 3, 0], [3, 900, 1, 1, 50], [64] * 5])
def test_with_lam_one_the_return_is_the_discounted_sum_of_later_rewards(dtype, lengths):
    rewards, _, bootstrap = columns(lengths, dtype)
    expected, start = [], 0
    for length, beyond in zip(lengths, bootstrap.tolist(), strict=True):
        later = [*rewards[start : start + length].tolist(), beyond]
        expected += [math.fsum(0.99**k * r for k, r in enumerate(later[t:])) for t in range(length)]
        start += length
    _, returns = run(lengths, dtype, lam=1.0)
    tolerance = 500 * torch.finfo(dtype).eps
    torch.testing.assert_close(returns, torch.tensor(expected, dtype=dtype), rtol=tolerance, atol=tolerance)


def test_a_nan_stays_in_its_sequence_and_comes_before_its_slot():
    rewards = torch.zeros(9)
    rewards[4] = math.nan
    gae_(rewards, torch.zeros(9), offsets([3, 3, 3]), gamma=1.0, lam=1.0, backend="native")
    assert rewards.isnan().tolist() == [False] * 3 + [True, True, False] + [False] * 3


@each_dtype
@pytest.mark.parametrize("lengths", [[700] * 120, [60000, 1, 0, 5, 30000], [100000], [0] * 9 + [40000, 40000, 0]])
def test_the_number_of_threads_changes_nothing(dtype, lengths):
    assert_independent_of_threads(lambda: run(lengths, dtype))
