"""What a script hands over as `reward_model`, as a reward of the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from rlhf_fast.model.batches import MicroBatches
from rlhf_fast.rewards.chosen import refuse_columns, with_retries
from rlhf_fast.rewards.classifier import AdapterReward
from rlhf_fast.rewards.function import FunctionReward
from rlhf_fast.rewards.source import RewardSource, WeightedRewards
from rlhf_fast.runtime.device import choose_device
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.trainer.classifier import ModuleCritic, has_score, open_scorer
from rlhf_fast.trainer.config import PPOConfig
from rlhf_fast.trainer.given import choose_dtype, place


def build_reward(reward_model: Any, args: PPOConfig, columns: Mapping[str, Sequence[Any]]) -> WeightedRewards:
    """A classifier or any module with `base_model_prefix` and `score` (on the sampled token ids, at the last one), a
    function of texts, or a reward source.

    `columns` are the dataset's, which a function is called with and an endpoint is sent. Raises `UsageError` for
    anything else.
    """
    special = args.reward_special_tokens
    if isinstance(reward_model, WeightedRewards):
        reward_model.special_tokens |= special
        return reward_model
    source = _source(reward_model, args)
    refuse_columns([(source, 1.0)], columns)
    if isinstance(source, AdapterReward):
        args.require(args.reward_timeout is None, "reward_timeout", "nothing where the reward is a model")
        args.require(not special, "reward_special_tokens", "false where the reward is a model, which reads token ids")
        return WeightedRewards([(source, 1.0)])
    asked = with_retries([(source, 1.0)], timeout=args.reward_timeout, retries=args.reward_retries)
    return WeightedRewards(asked, special_tokens=special)


def _source(reward_model: Any, args: PPOConfig) -> RewardSource:
    if isinstance(reward_model, (PreTrainedModel, PeftModel)):
        dtype = choose_dtype("reward_model", reward_model, None, train=False)
        place("reward_model", reward_model, args, dtype)
    if isinstance(reward_model, (PreTrainedModel, PeftModel)) or has_score(reward_model):
        device = choose_device(args.use_cpu)
        scorer = open_scorer("reward_model", reward_model, device, args.max_tokens_per_micro_batch)
        if isinstance(scorer, ModuleCritic):
            return scorer
        return AdapterReward("reward_model", scorer, MicroBatches.of(args))
    if isinstance(reward_model, nn.Module):
        raise UsageError(
            f"reward_model is a {type(reward_model).__name__}; expected a model of transformers, a module with "
            "base_model_prefix and score, a function of (prompts, responses, **columns), or a reward source. "
            "Wrap it in a function."
        )
    if hasattr(reward_model, "score") and hasattr(reward_model, "name"):
        return cast("RewardSource", reward_model)
    if not callable(reward_model):
        raise UsageError(
            f"reward_model is {reward_model!r}; expected an AutoModelForSequenceClassification with num_labels=1, a "
            "function of (prompts, responses, **columns), or a reward source."
        )
    name = getattr(reward_model, "__name__", "reward")
    return FunctionReward(name if name.isidentifier() else "reward", reward_model)
