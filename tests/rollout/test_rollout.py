"""A rollout's offsets and slots by hand, sampling against known probabilities, KL estimators by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_fast.model.roles import Policy
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.rollout.engine import Engine, generate
from rlhf_fast.rollout.rollout import Rollout
from rlhf_fast.rollout.sampling import Sampling, choose, uniform
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


def test_sampling_follows_the_softmax_at_its_temperature():
    logits = torch.tensor([[1.0, 2.0, 0.0, -1.0]]).expand(20000, 4)
    tokens_, logprobs = choose(logits, Sampling(1, (), 0.7), list(range(20000)), [0] * 20000)
    expected = torch.softmax(logits[0] / 0.7, 0)
    observed = torch.bincount(tokens_, minlength=4) / 20000
    assert (observed - expected).abs().max() < 0.015  # four standard errors
    torch.testing.assert_close(logprobs, expected.log()[tokens_])


def test_top_k_and_top_p_keep_the_likeliest():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).expand(500, 4)  # p = .644 .237 .087 .032
    for sampling, kept in ((Sampling(1, (), 1.0, top_k=2), {0, 1}), (Sampling(1, (), 1.0, top_p=0.9), {0, 1, 2})):
        assert set(choose(logits, sampling, list(range(500)), [3] * 500)[0].tolist()) == kept


def test_uniform_numbers_differ_by_seed_and_step_and_fill_the_interval():
    draws = [uniform(seed, step) for seed in range(100) for step in range(100)]
    assert len(set(draws)) == 10000 and 0 <= min(draws) < 0.01 and 0.99 < max(draws) < 1
    assert abs(sum(draws) / 10000 - 0.5) < 0.012


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
