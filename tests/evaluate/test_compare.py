"""Comparing two policies that share a tiny base."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from rlhf_fast.data.prompts import Prompts
from rlhf_fast.data.schema import PromptRow
from rlhf_fast.evaluate.compare import compare, log_ratios
from rlhf_fast.model.roles import Policy
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.rewards.function import FunctionReward
from rlhf_fast.rollout.engine import generate
from rlhf_fast.rollout.sampling import Sampling
from rlhf_fast.runtime.errors import UsageError
from tests.model_cases import tiny_model
from tests.tiny_tokenizer import tiny_tokenizer

TEMPERATURE = 0.7
SAMPLING = Sampling(8, (2,), TEMPERATURE)
ROWS = [PromptRow(f"w1 w{i} w{i + 3}", {"wanted": i, **({"odd": 1} if i % 2 else {})}) for i in range(6)]


@pytest.fixture
def policies() -> tuple[Policy, Policy]:
    shared = SharedModel(tiny_model())
    shared.add_adapter("after", LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in shared.parameters("after"):
            parameter.normal_(0, 0.15)
    return Policy(shared, None), Policy(shared, "after")


def words(prompts, responses, **columns):
    return [float(len(set(r.split()))) for r in responses]


def wanted(prompts, responses, wanted, **columns):
    return [-float(w) for w in wanted]


def held_out() -> Prompts:
    return Prompts.encode(tiny_tokenizer(), ROWS, 20)


def run(first: Policy, second: Policy, **options):
    rewards = [FunctionReward("words", words), FunctionReward("wanted", wanted)]
    return compare(first, second, held_out(), rewards, tiny_tokenizer(), SAMPLING, **options)


def test_a_policy_against_itself_ties_everywhere(policies):
    result = run(policies[0], policies[0])
    assert result.kl == 0
    for reward in result.rewards:
        assert reward.win_rate.value == 0.5 and reward.difference.value == 0
    assert result.first == result.second
    assert all(pair.first == pair.second for pair in result.pairs)


def test_scores_belong_to_their_prompts_and_texts(policies):
    result = run(*policies)
    assert [pair.prompt for pair in result.pairs] == [row.prompt for row in ROWS]
    for i, pair in enumerate(result.pairs):
        assert pair.first_scores == {"words": len(set(pair.first.split())), "wanted": -i}
        assert pair.second_scores == {"words": len(set(pair.second.split())), "wanted": -i}
    by_name = {reward.name: reward for reward in result.rewards}
    assert by_name["wanted"].first_mean == by_name["wanted"].second_mean == -2.5
    gains = [pair.second_scores["words"] - pair.first_scores["words"] for pair in result.pairs]
    assert by_name["words"].difference.value == pytest.approx(sum(gains) / 6)
    assert any(pair.first != pair.second for pair in result.pairs)


def test_the_result_does_not_depend_on_batching_but_on_the_seed(policies):
    assert [p.second for p in run(*policies).pairs] == [
        p.second for p in run(*policies, max_batch=2, max_tokens=16).pairs
    ]
    assert run(*policies).kl == pytest.approx(run(*policies, max_batch=2, max_tokens=16).kl, abs=1e-4)
    assert [p.second for p in run(*policies).pairs] != [p.second for p in run(*policies, seed=5).pairs]


@torch.no_grad()
def test_kl_is_the_mean_summed_log_ratio_on_seconds_own_samples(policies):
    """Against full softmaxes in fp64, one sequence at a time."""
    first, second = policies
    prompts = held_out().ids
    responses = generate(second, prompts, SAMPLING, seeds=list(range(6)))
    expected = []
    for prompt, response in zip(prompts, responses, strict=True):
        tokens = torch.tensor(prompt + response.tokens)
        sums = []
        for policy in (second, first):
            hidden = policy.model.hidden(tokens, [0, len(tokens)], policy.adapter).double()
            logits = hidden @ policy.model.lm_head[0].double().t() / TEMPERATURE
            chosen = logits.log_softmax(-1)[:-1].gather(1, tokens[1:, None])[len(prompt) - 1 :]
            sums.append(float(chosen.sum()))
        expected.append(sums[0] - sums[1])
    found = log_ratios(second, first, prompts, responses, temperature=TEMPERATURE, max_tokens=16)
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=1e-4)
    assert run(first, second).kl == pytest.approx(sum(expected) / 6, abs=1e-4)  # the seeds of seed=0 are 0 to 5


def test_greedy_responses_have_no_kl(policies):
    rewards = [FunctionReward("words", words)]
    greedy = Sampling(4, (2,), temperature=0)
    assert compare(*policies, held_out(), rewards, tiny_tokenizer(), greedy).kl is None


def test_a_fall_under_another_reward_than_the_first_is_reported(policies):
    texts = {pair.first: 0.0 for pair in run(*policies).pairs}

    def proxy(prompts, responses, **columns):
        return [texts.get(r, 1.0) for r in responses]

    def gold(prompts, responses, **columns):
        return [-score for score in proxy(prompts, responses)]

    rewards = [FunctionReward("proxy", proxy), FunctionReward("gold", gold), FunctionReward("same", wanted)]
    result = compare(*policies, held_out(), rewards, tiny_tokenizer(), SAMPLING)
    assert result.over_optimised_under == ["gold"]


def test_a_row_without_a_column_has_none_in_it_and_long_prompts_are_named():
    assert held_out().columns == {"odd": [None, 1, None, 1, None, 1], "wanted": [0, 1, 2, 3, 4, 5]}
    with pytest.raises(UsageError, match="held-out prompt 1"):
        Prompts.encode(tiny_tokenizer(), ROWS, 2, noun="held-out prompt")


def test_rewards_of_one_name_are_refused(policies):
    rewards = [FunctionReward("words", words)] * 2
    with pytest.raises(UsageError, match="different names"):
        compare(*policies, held_out(), rewards, tiny_tokenizer(), SAMPLING)
