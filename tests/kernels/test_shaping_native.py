"""The native `shape_rewards_`, against values worked by hand and float64."""

from __future__ import annotations

import math

import pytest
import torch

from tests.kernels.by_backend import native
from tests.kernels.column_cases import assert_independent_of_threads, each_dtype, needs_native, offsets

pytestmark = needs_native


def shaped(kl, scores, score_index, lengths, *, kl_coef=0.2):
    """Rewards that were NaN before, so that a slot that is not written shows."""
    rewards = torch.full_like(kl, math.nan)
    args = {
        "rewards": rewards,
        "kl": kl,
        "scores": torch.tensor(scores, dtype=kl.dtype),
        "score_index": torch.tensor(score_index, dtype=torch.int64),
        "cu_responses": offsets(lengths),
        "kl_coef": kl_coef,
    }
    assert native.refusal("shape_rewards_", **args) is None
    native.shape_rewards_(**args)
    return rewards


@each_dtype
def test_scores_land_on_their_slots_a_zero_too_and_that_of_an_empty_response_nowhere(dtype):
    kl = torch.tensor([0.5, -0.25, 1.0, 0.0, 2.0, 4.0], dtype=dtype)
    rewards = shaped(kl, [1.0, 7.0, 0.0, -3.0], [1, -1, 2, 5], [2, 0, 3, 1], kl_coef=0.25)
    assert rewards.tolist() == [-0.125, 1.0625, -0.25, 0.0, -0.5, -4.0]


@each_dtype
@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_without_slots_nothing_happens(dtype, lengths):
    assert shaped(torch.zeros(0, dtype=dtype), [5.0] * len(lengths), [-1] * len(lengths), lengths).shape == (0,)


@each_dtype
@pytest.mark.parametrize("slots", [1, 7, 4095, 4096, 4097, 10000])
def test_every_slot_is_minus_the_coefficient_times_its_kl(dtype, slots):
    kl = torch.randn(slots, generator=torch.Generator().manual_seed(slots), dtype=dtype)
    expected = -0.3 * kl.double()
    expected[slots // 2] += 1e3
    rewards = shaped(kl, [1e3], [slots // 2], [slots], kl_coef=0.3)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(rewards.double(), expected, rtol=2 * eps, atol=0)


@each_dtype
def test_the_number_of_threads_changes_nothing(dtype):
    kl = torch.randn(300_001, generator=torch.Generator().manual_seed(0), dtype=dtype)
    assert_independent_of_threads(lambda: (shaped(kl, [2.0, 3.0], [0, 300_000], [100_000, 200_001]),))


def test_strided_columns_are_refused():
    assert "kl is not contiguous" in native.refusal(
        "shape_rewards_", **{"rewards": torch.zeros(4), "kl": torch.zeros(4, 2)[:, 0]}
    )
