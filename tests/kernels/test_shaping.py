"""What `shape_rewards_` promises, with values worked by hand."""

from __future__ import annotations

import pytest
import torch

from rlhf_kernels import shape_rewards_

KL = torch.tensor([0.5, -0.25, 1.0, 0.0, 2.0])
CU = torch.tensor([0, 2, 2, 5], dtype=torch.int32)  # responses of 2, 0 and 3 slots


def shaped(scores, score_index, *, kl=KL, kl_coef=0.2):
    rewards = torch.full((5,), 99.0)
    shape_rewards_(rewards, kl, torch.tensor(scores), torch.tensor(score_index), CU, kl_coef=kl_coef)
    return rewards.tolist()


def test_reward_is_minus_beta_kl_plus_the_score_at_its_position():
    assert shaped([1.0, 7.0, -2.0], [1, -1, 3]) == pytest.approx([-0.1, 1.05, -0.2, -2.0, -0.4])


def test_bug_18_a_score_of_zero_is_a_score():
    """The score 0.0 lands like any other: it neither keeps an old value nor moves another sequence's score."""
    assert shaped([0.0, 0.0, 3.0], [1, -1, 4]) == pytest.approx([-0.1, 0.05, -0.2, 0.0, 2.6])
    assert shaped([0.0, 0.0, 0.0], [1, -1, 4]) == pytest.approx([-0.1, 0.05, -0.2, 0.0, -0.4])


def test_bug_2_the_score_lands_where_it_is_told_not_at_the_last_slot():
    assert shaped([0.0, 0.0, 5.0], [0, -1, 2], kl_coef=0.0) == [0.0, 0.0, 5.0, 0.0, 0.0]


def test_the_score_of_an_empty_response_lands_nowhere():
    assert shaped([0.0, 123.0, 0.0], [0, -1, 4], kl_coef=0.0) == [0.0] * 5


def test_nothing_to_shape_is_fine():
    empty = torch.zeros(0)
    shape_rewards_(
        empty, empty, empty, torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int32), kl_coef=0.1
    )
    shape_rewards_(empty, empty, torch.ones(2), torch.tensor([-1, -1]), torch.zeros(3, dtype=torch.int32), kl_coef=0.1)


def test_kl_is_left_as_it_was():
    kl = KL.clone()
    shaped([1.0, 1.0, 1.0], [1, -1, 4], kl=kl)
    assert torch.equal(kl, KL)


@pytest.mark.parametrize("score_index", [[1, 2, 4], [1, -1, 5], [2, -1, 4], [-1, -1, 4]])
def test_a_score_position_outside_its_own_sequence_is_refused(score_index):
    with pytest.raises(ValueError, match="score_index"):
        shaped([1.0, 1.0, 1.0], score_index)


def test_bug_5_kl_in_bf16_is_refused():
    with pytest.raises(TypeError, match=r"kl has dtype .* expected float32"):
        shaped([1.0, 1.0, 1.0], [1, -1, 4], kl=KL.bfloat16())


@pytest.mark.parametrize("cu", [[0, 2, 2, 4], [1, 2, 2, 5], [0, 3, 2, 5]])
def test_offsets_that_do_not_cover_the_columns_are_refused(cu):
    offsets = torch.tensor(cu, dtype=torch.int32)
    with pytest.raises(ValueError, match="cu_responses runs from"):
        shape_rewards_(torch.zeros(5), KL, torch.zeros(3), torch.tensor([1, -1, 4]), offsets, kl_coef=0.1)
