"""RLHF in one process or several: SFT, a reward model, and PPO, over one shared copy of the base weights."""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "ClassifierReward": "rlhf_fast.rewards.classifier",
    "EndpointReward": "rlhf_fast.rewards.endpoint",
    "EvaluateConfig": "rlhf_fast.evaluate.config",
    "ExportConfig": "rlhf_fast.export.config",
    "ForbiddenPhrases": "rlhf_fast.rewards.rules",
    "FunctionReward": "rlhf_fast.rewards.function",
    "GenerateConfig": "rlhf_fast.generate.config",
    "Interrupted": "rlhf_fast.runtime.interrupt",
    "LengthWithin": "rlhf_fast.rewards.rules",
    "PPOConfig": "rlhf_fast.trainer.config",
    "PPORunConfig": "rlhf_fast.train.ppo_config",
    "PPOTrainer": "rlhf_fast.trainer.ppo_trainer",
    "RewardConfig": "rlhf_fast.preferences.config",
    "Rollout": "rlhf_fast.rollout.arena",
    "SFTConfig": "rlhf_fast.train.sft_config",
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

__version__ = "0.1.0"
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    """Exports are imported when first used, so that importing the package is quick."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
