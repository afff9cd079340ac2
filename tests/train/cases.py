"""A PPO run on a tiny model: policy, reference and critic on one base, a reward that likes even words."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig
from transformers import PreTrainedModel

from rlhf_fast.data.prompts import Prompts
from rlhf_fast.model.roles import Policy, ValueModel, adapter_critic
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.rewards.function import FunctionReward
from rlhf_fast.rewards.source import WeightedRewards
from rlhf_fast.rollout.rollout import Rollout
from rlhf_fast.train.config import PPORunConfig
from rlhf_fast.train.ppo import PPO
from tests.model_cases import tiny_model, tokens
from tests.tiny_tokenizer import tiny_tokenizer


def likes_even(prompts, responses, **columns):
    """The share of words with an even number."""
    return [sum(w[-1] in "02468" for w in r.split()) / max(1, len(r.split())) for r in responses]


def ppo_config(tmp_path, **options: Any) -> PPORunConfig:
    defaults = {
        "output_dir": str(tmp_path), "per_device_train_batch_size": 16, "learning_rate": 1e-2, "response_length": 6,
        "total_episodes": 16 * 15, "temperature": 1.0, "use_cpu": True, "lr_scheduler_type": "constant",
    }  # fmt: skip
    return PPORunConfig(**(defaults | options))


def run(
    tmp_path,
    reward=likes_even,
    *,
    model: PreTrainedModel | None = None,
    critic: ValueModel | None = None,
    **options: Any,
) -> PPO:
    config = ppo_config(tmp_path, **options)
    if model is None:
        model = tiny_model()
        model.lm_head.weight.data.mul_(6)  # random logits are too small for any policy to prefer a token
        model.lm_head.weight.data[2].mul_(2)  # EOS, so that some responses end before the budget
    shared = SharedModel(model)
    shared.add_adapter("policy", LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    shared.add_adapter("critic", LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"), head=True)
    prompts = tokens(3, 5, 4, 7, 2, 6, 3, 4)
    rewards = WeightedRewards([(FunctionReward("likes_even", reward), 1.0)])
    return PPO(
        config, Policy(shared, "policy"), Policy(shared, None), critic or adapter_critic(shared, "critic"), rewards,
        tiny_tokenizer(), Prompts(prompts, ["text"] * len(prompts)),
    )  # fmt: skip


def estimated(ppo: PPO) -> Rollout:
    """A rollout with every column filled, as `update` takes it."""
    rollout = ppo.collect()
    ppo.shape(rollout, ppo.score(rollout).total)
    ppo.estimate(rollout)
    return rollout
