"""A rollout's offsets and slots by hand, sampling against known probabilities, KL estimators by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_fast.model.roles import Policy
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.rollout.engine import Engine, generate
from rlhf_fast.rollout.rollout import Rollout
from rlhf_fast.rollout.sampling import Sampling
from rlhf_fast.rollout.scoring import k1, k2, k3
from rlhf_fast.runtime.errors import UsageError
from tests.model_cases import tiny_model, tokens


def small_rollout(score_at) -> Rollout:
    """Budget 3: one response ends early, one is cut off at the budget, one ends exactly at the budget."""
    return Rollout.from_responses(
        [[10, 11], [12], [13, 14, 15]], [[20, 2], [21, 22, 23], [24, 25, 2]],
        finished=[True, False, True], budget=3, score_at=score_at,
    )  # fmt: skip


def test_slots_read_the_position_before_each_response_token():
    rollout = small_rollout("eos")
    assert rollout.tokens.tolist() == [10, 11, 20, 2, 12, 21, 22, 23, 13, 14, 15, 24, 25, 2]
    assert rollout.cu_seqlens.tolist() == [0, 4, 8, 14] and rollout.cu_responses.tolist() == [0, 2, 5, 8]
    assert rollout.slot_rows.tolist() == [1, 2, 4, 5, 6, 10, 11, 12]
    assert rollout.labels.tolist() == [20, 2, 21, 22, 23, 24, 25, 2]
    assert rollout.score_index.tolist() == [1, 4, 7]
    assert rollout.truncated.tolist() == [False, True, False] and rollout.action_mask.all()


def test_eos_plus_one_adds_a_slot_only_where_the_response_is_shorter_than_the_budget():
    rollout = small_rollout("eos+1")
    assert rollout.cu_responses.tolist() == [0, 3, 6, 9]
    assert rollout.slot_rows.tolist() == [1, 2, 3, 4, 5, 6, 10, 11, 12]
    assert rollout.labels.tolist() == [20, 2, -100, 21, 22, 23, 24, 25, 2]
    assert rollout.score_index.tolist() == [2, 5, 8]


def test_select_reorders_sequences_and_slots_together():
    rollout = small_rollout("eos+1")
    packed, slots = rollout.select([2, 0])
    assert packed.tokens.tolist() == [13, 14, 15, 24, 25, 2, 10, 11, 20, 2] and packed.cu_seqlens == [0, 6, 10]
    assert packed.rows.tolist() == [2, 3, 4, 7, 8, 9]
    assert packed.labels.tolist() == [24, 25, 2, 20, 2, -100] and slots.tolist() == [6, 7, 8, 0, 1, 2]


def test_a_response_over_the_budget_is_refused():
    with pytest.raises(UsageError, match="at most 2"):
        Rollout.from_responses([[1]], [[3, 4, 5]], finished=[False], budget=2)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_top_k_of_all_tokens_gives_bit_for_bit_the_responses_without_it(architecture):
    policy = Policy(SharedModel(tiny_model(architecture)), None)
    prompts, seeds = tokens(4, 9, 2), [1, 2, 3]
    vocabulary = policy.model.lm_head[0].shape[0]
    assert generate(policy, prompts, Sampling(10, (), top_k=vocabulary), seeds=seeds) == generate(
        policy, prompts, Sampling(10, ()), seeds=seeds
    )


@pytest.mark.parametrize("only_one", [{"top_k": 1}, {"top_p": 1e-6}])
def test_a_filter_that_leaves_one_token_gives_the_greedy_response(only_one):
    policy = Policy(SharedModel(tiny_model()), None)
    prompts, seeds = tokens(4, 9), [1, 2]
    greedy = generate(policy, prompts, Sampling(10, (), temperature=0), seeds=seeds)
    found = generate(policy, prompts, Sampling(10, (), **only_one), seeds=seeds)
    assert [r.tokens for r in found] == [r.tokens for r in greedy]
    assert greedy[0].tokens != generate(policy, prompts, Sampling(10, ()), seeds=seeds)[0].tokens


def test_a_response_does_not_depend_on_the_batch_it_was_sampled_in():
    policy = Policy(SharedModel(tiny_model()), None)
    prompts = tokens(4, 9, 2, 6)
    together = generate(policy, prompts, Sampling(10, (7,)), seeds=[1, 2, 3, 4])
    alone = [generate(policy, [p], Sampling(10, (7,)), seeds=[i + 1])[0] for i, p in enumerate(prompts)]
    two_rows = generate(policy, prompts, Sampling(10, (7,)), seeds=[1, 2, 3, 4], max_batch=2, max_tokens=5)
    assert [r.tokens for r in together] == [r.tokens for r in alone] == [r.tokens for r in two_rows]


def test_prompts_that_cannot_be_answered_are_refused():
    policy = Policy(SharedModel(tiny_model()), None)
    with pytest.raises(UsageError, match="empty"):
        generate(policy, [[]], Sampling(4, ()), seeds=[0])
    with pytest.raises(UsageError, match="context is 64"):
        generate(policy, tokens(62), Sampling(4, ()), seeds=[0])
    with pytest.raises(UsageError, match="max_new_tokens=0"):
        Sampling(0, ())


def test_kl_estimators_by_hand():
    lp, lr = torch.tensor([-1.0]), torch.tensor([-1.5])
    assert k1(lp, lr).item() == pytest.approx(0.5)
    assert k2(lp, lr).item() == pytest.approx(0.125)
    assert k3(lp, lr).item() == pytest.approx(math.exp(-0.5) - 1 + 0.5)


def test_where_torch_samples_the_head_is_widened_once_for_the_rollout(monkeypatch):
    monkeypatch.setenv("RLHF_FAST_BACKEND", "reference")
    policy = Policy(SharedModel(tiny_model().to(torch.bfloat16)), None)
    engine = Engine(policy, tokens(3), Sampling(2, ()), [0], 1, 100)
    assert engine.weight.dtype == torch.float32
    engine.run()
    assert len(engine.responses[0].tokens) == 2
