"""What `gae_` promises, against a float64 loop over every sequence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_kernels import gae_


def gae_loop(rewards, values, lengths, gamma, lam, bootstrap):
    """Advantages and returns in float64, straight from the definition: a discounted sum of later deltas."""
    advantages, start = [], 0
    for length, beyond in zip(lengths, bootstrap, strict=True):
        r = rewards[start : start + length].double().numpy()
        v = np.append(values[start : start + length].double().numpy(), beyond)
        delta = r + gamma * v[1:] - v[:-1]
        advantages += [sum((gamma * lam) ** k * delta[t + k] for k in range(length - t)) for t in range(length)]
        start += length
    advantages = np.array(advantages)
    return advantages, advantages + values.double().numpy()


def offsets(lengths):
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)


def test_two_sequences_by_hand():
    """Second sequence, gamma 1/2, lam 1/2: d = (1 + 4 - 2, 0 + 0 - 8) = (3, -8), A = (3 - 2, -8)."""
    rewards = torch.tensor([5.0, 1.0, 0.0])
    returns = gae_(rewards, torch.tensor([2.0, 2.0, 8.0]), offsets([1, 2]), gamma=0.5, lam=0.5)
    assert rewards.tolist() == [3.0, 1.0, -8.0]
    assert returns.tolist() == [5.0, 3.0, 0.0]


def test_with_gamma_and_lam_one_the_return_is_the_sum_of_later_rewards():
    rewards = torch.tensor([1.0, 2.0, 3.0, 10.0])
    returns = gae_(rewards, torch.tensor([7.0, -3.0, 4.0, 1.0]), offsets([3, 1]), gamma=1.0, lam=1.0)
    assert returns.tolist() == [6.0, 5.0, 3.0, 10.0]


def test_the_bootstrap_value_stands_beyond_its_own_sequence_only():
    rewards = torch.zeros(3)
    gae_(rewards, torch.zeros(3), offsets([2, 0, 1]), gamma=0.5, lam=1.0, bootstrap=torch.tensor([8.0, 100.0, 0.0]))
    assert rewards.tolist() == [2.0, 4.0, 0.0]


def test_bug_7_values_are_the_baseline_of_their_own_slot():
    """Exchanging two values, or two sequences' values, changes the advantages of exactly those slots here (lam 0)."""
    rewards = torch.zeros(4)
    gae_(rewards, torch.tensor([1.0, 2.0, 3.0, 4.0]), offsets([2, 2]), gamma=0.0, lam=0.0)
    assert rewards.tolist() == [-1.0, -2.0, -3.0, -4.0]


@given(
    lengths=st.lists(st.integers(0, 9), max_size=6),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    lam=st.sampled_from([0.0, 0.95, 1.0]),
    bootstrapped=st.booleans(),
    backend=st.sampled_from(["reference", None]),
    seed=st.integers(0, 99),
)
def test_ragged_sequences_match_the_float64_loop(lengths, gamma, lam, bootstrapped, backend, seed):
    g = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, sum(lengths), generator=g, dtype=torch.float64)
    bootstrap = torch.randn(len(lengths), generator=g, dtype=torch.float64) if bootstrapped else None
    beyond = [0.0] * len(lengths) if bootstrap is None else bootstrap.tolist()
    expected, expected_returns = gae_loop(rewards, values, lengths, gamma, lam, beyond)
    returns = gae_(rewards, values, offsets(lengths), gamma=gamma, lam=lam, bootstrap=bootstrap, backend=backend)
    np.testing.assert_allclose(rewards, expected, atol=1e-12)
    np.testing.assert_allclose(returns, expected_returns, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", None])
def test_only_rewards_change(backend):
    values, bootstrap, cu = torch.ones(3), torch.full((1,), 5.0), offsets([3])
    gae_(torch.ones(3), values, cu, gamma=1.0, lam=1.0, bootstrap=bootstrap, backend=backend)
    assert values.tolist() == [1.0] * 3 and bootstrap.tolist() == [5.0] and cu.tolist() == [0, 3]


def test_strided_rewards_are_written_in_place():
    base = torch.tensor([[1.0, 50.0], [2.0, 60.0]])
    gae_(base[:, 0], torch.zeros(2), offsets([2]), gamma=1.0, lam=1.0)
    assert base.tolist() == [[3.0, 50.0], [2.0, 60.0]]


def test_no_sequences_and_only_empty_ones():
    assert gae_(torch.zeros(0), torch.zeros(0), offsets([]), gamma=1.0, lam=1.0).shape == (0,)
    assert gae_(torch.zeros(0), torch.zeros(0), offsets([0, 0]), gamma=1.0, lam=1.0).shape == (0,)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_whitened_by_hand(backend):
    """Advantages 1, 9, 5 and a 7 outside the mask: mean 5, variance (16 + 16) / 2; returns are not whitened."""
    rewards, mask = torch.tensor([1.0, 9.0, 7.0, 5.0]), torch.tensor([True, True, False, True])
    call = (rewards, torch.zeros(4), offsets([1, 1, 1, 1]))
    returns = gae_(*call, gamma=1.0, lam=1.0, whiten=True, mask=mask, eps=0.0, backend=backend)
    assert rewards.tolist() == [-1.0, 1.0, 7.0, 0.0]
    assert returns.tolist() == [1.0, 9.0, 7.0, 5.0]
    population = torch.tensor([2.0, 4.0])
    gae_(population, torch.zeros(2), offsets([2]), gamma=1.0, lam=0.0, whiten=True, ddof=0, eps=0.0, backend=backend)
    assert population.tolist() == [-1.0, 1.0]


def test_what_whitening_reads_is_checked():
    call = (torch.zeros(3), torch.zeros(3), offsets([3]))
    with pytest.raises(ValueError, match="ddof is -1, expected 0"):
        gae_(*call, gamma=1.0, lam=1.0, whiten=True, ddof=-1)
    with pytest.raises(ValueError, match=r"mask has shape \(2,\), expected \(3,\)"):
        gae_(*call, gamma=1.0, lam=1.0, whiten=True, mask=torch.ones(2, dtype=torch.bool))


@pytest.mark.parametrize("settings", [{"gamma": 1.1, "lam": 1.0}, {"gamma": 1.0, "lam": -0.1}])
def test_gamma_and_lam_outside_zero_to_one_are_refused(settings):
    with pytest.raises(ValueError, match=r"expected a number in \[0, 1\]"):
        gae_(torch.zeros(1), torch.zeros(1), offsets([1]), **settings)


def test_columns_of_unequal_length_or_dtype_are_refused():
    with pytest.raises(ValueError, match=r"values has shape \(2,\), expected \(1,\)"):
        gae_(torch.zeros(1), torch.zeros(2), offsets([1]), gamma=1.0, lam=1.0)
    with pytest.raises(TypeError, match="expected one dtype for all"):
        gae_(torch.zeros(1), torch.zeros(1).double(), offsets([1]), gamma=1.0, lam=1.0)
    with pytest.raises(TypeError, match="expected float32 or float64"):
        gae_(torch.zeros(1).bfloat16(), torch.zeros(1).bfloat16(), offsets([1]), gamma=1.0, lam=1.0)
    with pytest.raises(TypeError, match="expected int32 offsets"):
        gae_(torch.zeros(1), torch.zeros(1), offsets([1]).long(), gamma=1.0, lam=1.0)
