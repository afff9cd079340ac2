"""Log-probs, KL and values of a rollout, against transformers' own logits in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, PhiConfig

from rlhf_fast.model.batches import MicroBatches
from rlhf_fast.model.roles import Policy, PolicyHeadCritic
from rlhf_fast.model.shared import ScalarHead, SharedModel
from rlhf_fast.rollout.engine import generate
from rlhf_fast.rollout.rollout import COLUMNS, Rollout
from rlhf_fast.rollout.sampling import Sampling
from rlhf_fast.rollout.scoring import k1, k2, k3, score_rollout
from tests.model_cases import tiny_model, tokens
from tests.train.cases import estimated, run

TEMPERATURE = 0.7


def critic_of(policy: Policy) -> PolicyHeadCritic:
    return PolicyHeadCritic(ScalarHead(policy.model.hidden_size))


def two_models(config) -> tuple:
    """Policy and reference that differ in every weight, biases of the head included."""
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
        models.append(model)
    return tuple(models)


@torch.no_grad()
def log_softmax(model, prompt: list[int], response: list[int]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double()
    return (logits / TEMPERATURE).log_softmax(-1)[len(prompt) - 1 : -1]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "exact"])
@pytest.mark.parametrize(
    "config",
    [
        PhiConfig(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4),
        GPT2Config(vocab_size=97, n_embd=32, n_layer=1, n_head=4, n_positions=64),
    ],
    ids=["phi: the head has a bias", "gpt2"],
)
def test_two_models_are_each_scored_with_their_own_weights(config, estimator):
    models = two_models(config)
    prompts, responses = tokens(3, 5, seed=1), tokens(4, 2, seed=2)
    wanted = []
    for prompt, response in zip(prompts, responses, strict=True):
        p, r = (log_softmax(model, prompt, response) for model in models)
        own = torch.tensor(response)[:, None]
        lp, lr = p.gather(1, own)[:, 0], r.gather(1, own)[:, 0]
        kl = (p.exp() * (p - r)).sum(1) if estimator == "exact" else {"k1": k1, "k2": k2, "k3": k3}[estimator](lp, lr)
        wanted.append(torch.stack([lp, lr, kl]))
    policy, reference = (Policy(SharedModel(model), None) for model in models)
    rollout = Rollout.from_responses(prompts, responses, finished=[True, True], budget=5, score_at="eos+1")
    score_rollout(
        rollout, policy, reference, critic_of(policy), MicroBatches(8), temperature=TEMPERATURE, kl_estimator=estimator
    )
    got = torch.stack([getattr(rollout, name) for name in ("logprobs", "ref_logprobs", "kl")])
    torch.testing.assert_close(got[:, rollout.action_mask], torch.cat(wanted, 1).float(), atol=1e-4, rtol=1e-4)
    assert (got[:, ~rollout.action_mask] == 0).all()


def test_one_temperature_serves_sampling_scoring_and_update(tmp_path):
    ppo = run(tmp_path, temperature=0.5)
    rollout = estimated(ppo)
    torch.testing.assert_close(rollout.sampled_logprobs, rollout.logprobs, atol=1e-5, rtol=1e-5)
    losses = ppo.accumulate(rollout, list(range(16)), rollout.logprobs)
    assert float(losses[0].ratio_mean) == pytest.approx(1, abs=1e-6)
    other = run(tmp_path, temperature=1.0)
    score_rollout(
        rollout, other.policy, other.reference, other.critic, MicroBatches(2048), temperature=1.0, kl_estimator="k1"
    )
    assert (rollout.logprobs - rollout.sampled_logprobs).abs().max() > 0.1


def test_dropout_of_the_model_is_off_in_rollout_scoring_and_update(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    model = AutoModelForCausalLM.from_config(GPT2Config(**sizes, resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5))
    model.train()
    ppo = run(tmp_path, model=model)
    rollout = estimated(ppo)
    torch.testing.assert_close(rollout.sampled_logprobs, rollout.logprobs, atol=1e-5, rtol=1e-5)
    ppo.update(rollout)  # checks that the first ratio is 1
    assert not model.training


def test_log_probs_and_kl_of_a_bf16_model_are_float32():
    shared = SharedModel(tiny_model().to(torch.bfloat16))
    policy = Policy(shared, None)
    prompts = tokens(3, 4)
    responses = generate(policy, prompts, Sampling(5, ()), seeds=[0, 1])
    rollout = Rollout.from_responses(prompts, [r.tokens for r in responses], finished=[False] * 2, budget=5)
    score_rollout(rollout, policy, policy, critic_of(policy), MicroBatches(100), temperature=1.0, kl_estimator="exact")
    assert {getattr(rollout, name).dtype for name in COLUMNS} == {torch.float32}
    coarse = rollout.logprobs.to(torch.bfloat16).float()
    assert (coarse != rollout.logprobs).any()  # more digits than bf16 has
