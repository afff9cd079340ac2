"""The KL penalty holds the policy: PPO's objective E[score] - beta KL, summed over every response there is, rises.

One prompt, a vocabulary of 8 and responses of 2 tokens make 64 responses, each with a score of its own.
"""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from rlhf_fast import UsageError
from rlhf_fast.data.prompts import Prompts
from rlhf_fast.rewards.source import Scores
from rlhf_fast.rollout.rollout import Rollout
from rlhf_fast.train.ppo import PPO
from rlhf_fast.trainer import PPOConfig
from tests.train.cases import ppo_config, run

WORDS, BETA, PROMPT = 8, 1.0, [1, 5, 3]
RESPONSES = torch.cartesian_prod(torch.arange(WORDS), torch.arange(WORDS))  # (64, 2)


def small_run(tmp_path, seed: int, **options) -> PPO:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=WORDS, initializer_range=0.4, **sizes)).eval()
    ppo = run(
        tmp_path, model=model, seed=seed, kl_coef=BETA, stop_token="none", response_length=2, gamma=1.0, lam=1.0,
        per_device_train_batch_size=32, total_episodes=32 * 25, num_ppo_epochs=1, learning_rate=2e-2, **options,
    )  # fmt: skip
    ppo.prompts = Prompts([PROMPT], ["text"])
    return ppo


def objective(ppo: PPO, score: torch.Tensor) -> tuple[float, float]:
    """E[score] - BETA KL(policy || reference), and that KL, over all responses."""
    ids = RESPONSES.tolist()
    rollout = Rollout.from_responses([PROMPT] * len(ids), ids, finished=[False] * len(ids), budget=2)
    ppo.score_tokens(rollout)
    own, ref = (getattr(rollout, name).double().view(-1, 2).sum(1) for name in ("logprobs", "ref_logprobs"))
    p = own.exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-4)
    kl = (p * (own - ref)).sum()
    return float((p * score).sum() - BETA * kl), float(kl)


def learn(ppo: PPO, seed: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Objective and KL before and after the run."""
    score = torch.randn(WORDS**2, generator=torch.Generator().manual_seed(seed))
    before = objective(ppo, score)
    for _ in range(ppo.iterations):
        rollout = ppo.collect()
        first, second = torch.tensor(rollout.responses()).T
        ppo.learn(rollout, Scores(score[first * WORDS + second], {}))
    return before, objective(ppo, score)


@pytest.mark.parametrize("seed", range(5))
def test_the_objective_with_its_kl_penalty_rises(tmp_path, seed):
    """By 0.2 to 0.5 here, at a KL of half a nat. A penalty by `exact` ends below the start, by up to 6, at up to 8
    nats."""
    (before, none), (after, _) = learn(small_run(tmp_path, seed), seed)
    assert none == pytest.approx(0, abs=1e-5)
    assert after > before + 0.1


@pytest.mark.parametrize(
    "options",
    [
        {"kl_estimator": "exact"},
        {"kl_estimator": "k2"},
        {"kl_estimator": "k3"},
        {"kl_estimator": "k3", "preset": "verl"},
        {"kl_estimator": "exact", "preset": "trl"},
        {"kl_estimator": "k2", "preset": "trl"},
        {"kl_estimator": "exact", "kl_target": 1.0},
    ],
)
def test_an_estimator_that_does_not_hold_the_policy_is_refused_as_a_penalty(tmp_path, options):
    with pytest.raises(UsageError, match=r"hardly holds the policy at the reference.*Expected k1; or k3 with preset="):
        ppo_config(tmp_path, **options)


@pytest.mark.parametrize("estimator", ["k2", "exact"])
def test_the_trainer_refuses_it_too(tmp_path, estimator):
    with pytest.raises(UsageError, match=f"kl_estimator='{estimator}' cannot be used"):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, kl_estimator=estimator)


@pytest.mark.parametrize(
    "make", [lambda path, **o: ppo_config(path, preset="trl", **o), lambda path, **o: PPOConfig(str(path), **o)]
)
def test_trls_k3_is_taken_with_one_line_that_says_what_is_wrong_with_it(tmp_path, caplog, make):
    with caplog.at_level(logging.WARNING, "rlhf_fast.notices"):
        assert make(tmp_path, kl_estimator="k3").kl_estimator == "k3"
    assert [record.message for record in caplog.records] == [
        "kl_estimator=k3 is TRL's formula, but as a penalty in the reward it hardly holds the policy at the reference: "
        "its gradient is not that of the KL; use k1."
    ]


@pytest.mark.parametrize("estimator", ["k2", "k3", "exact"])
def test_without_a_penalty_any_estimator_may_be_logged(tmp_path, estimator, caplog):
    assert ppo_config(tmp_path, kl_estimator=estimator, kl_coef=0.0).kl_estimator == estimator
    assert not caplog.records
