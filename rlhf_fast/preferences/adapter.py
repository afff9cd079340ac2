"""The adapter that becomes the reward model: a fresh one, a copy of the SFT adapter, or of another reward model."""

from __future__ import annotations

from rlhf_fast.model.lora_choice import add_trained
from rlhf_fast.model.roles import Critic, adapter_critic
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.preferences.config import RewardConfig


def add_reward_adapter(
    shared: SharedModel, config: RewardConfig, *, sft: str | None = None, name: str = "reward"
) -> Critic:
    """Add adapter `name`; `sft` names the adapter that it starts as a copy of.

    Its head scores everything 0, unless the copied adapter is a reward model itself: training goes on from its head.

    The copy has the rank, scale and target layers of `sft`, so differing lora_r, lora_alpha or lora_target_modules
    raise `UsageError`; with lora_layers, only the copy's parameters on those decoder layers are trained.
    """
    add_trained(shared, config, name, copy_of=sft, head=True)
    if name not in shared.heads:
        shared.add_head(name)
    return adapter_critic(shared, name)
