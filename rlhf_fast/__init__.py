"""RLHF on one node, in one process: SFT, a reward model, and PPO, over one shared copy of the base weights."""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "PPOConfig": "rlhf_fast.train.ppo_config",
    "SFTConfig": "rlhf_fast.train.sft_config",
    "run_ppo": "rlhf_fast.train.ppo_run",
    "run_sft": "rlhf_fast.train.sft",
    "FunctionReward": "rlhf_fast.rewards.function",
    "Rollout": "rlhf_fast.rollout.arena",
    "SharedModel": "rlhf_fast.model.shared",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    """Exports are imported when first used, so that importing the package is quick."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
