"""RLHF in one process or several: SFT, a reward model, and PPO, over one shared copy of the base weights."""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "ClassifierReward": "rlhf_fast.rewards.classifier",
    "EndpointReward": "rlhf_fast.rewards.endpoint",
    "EvaluateConfig": "rlhf_fast.evaluate.config",
    "ExportConfig": "rlhf_fast.export.config",
    "ForbiddenPhrases": "rlhf_fast.rewards.function",
    "FunctionReward": "rlhf_fast.rewards.function",
    "GenerateConfig": "rlhf_fast.generate.config",
    "Interrupted": "rlhf_fast.runtime.interrupt",
    "LengthWithin": "rlhf_fast.rewards.function",
    "PPOConfig": "rlhf_fast.trainer.config",
    "PPORunConfig": "rlhf_fast.train.config",
    "PPOTrainer": "rlhf_fast.trainer.ppo_trainer",
    "RewardConfig": "rlhf_fast.preferences.config",
    "Rollout": "rlhf_fast.rollout.rollout",
    "SFTConfig": "rlhf_fast.train.config",
    "SharedModel": "rlhf_fast.model.shared",
    "UsageError": "rlhf_fast.runtime.errors",
    "run_demo": "rlhf_fast.demo.run",
    "DemoConfig": "rlhf_fast.demo.config",
    "run_evaluate": "rlhf_fast.evaluate.run",
    "run_export": "rlhf_fast.export.run",
    "run_generate": "rlhf_fast.generate.run",
    "run_ppo": "rlhf_fast.train.ppo_run",
    "run_reward": "rlhf_fast.preferences.reward_model",
    "run_sft": "rlhf_fast.train.sft",
}

_OF_OLDER_TRL = {
    "AutoModelForCausalLMWithValueHead": "pass AutoModelForCausalLM as model; the critic is value_model, or made",
    "AutoModelForSeq2SeqLMWithValueHead": "pass AutoModelForCausalLM as model: encoder-decoder models are not served",
    "create_reference_model": "pass ref_model=None, which keeps a frozen reference",
    "respond_to_batch": "PPOTrainer.train() samples the responses",
}

__version__ = "0.1.0"
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    """Exports are imported when first used, so that importing the package is quick."""
    if name in _OF_OLDER_TRL:
        from rlhf_fast.runtime.errors import UsageError  # an AttributeError would reach an import without its text

        raise UsageError(f"{name} is of TRL's PPO up to 0.11: {_OF_OLDER_TRL[name]}. See docs/migration.md.")
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
