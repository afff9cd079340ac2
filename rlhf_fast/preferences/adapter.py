"""The adapter that becomes the reward model: a fresh one, or a copy of the SFT adapter, with a fresh head."""

from __future__ import annotations

import re

from peft import LoraConfig

from rlhf_fast.model.lora_choice import lora_config
from rlhf_fast.model.roles import Critic, adapter_critic
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.preferences.config import RewardConfig
from rlhf_fast.runtime.errors import UsageError

_LAYER_INDEX = re.compile(r".*\.[^.]*\.(\d+)\.")  # as PEFT reads it for layers_to_transform


def add_reward_adapter(
    shared: SharedModel, config: RewardConfig, *, sft: str | None = None, name: str = "reward"
) -> Critic:
    """Add adapter `name` with a head that scores everything 0; `sft` names the adapter that it starts as a copy of.

    The copy has the rank, scale and target layers of `sft`, so differing lora_r, lora_alpha or lora_target_modules
    raise `UsageError`; with lora_layers, only the copy's parameters on those decoder layers are trained.
    """
    _check_layers(shared, config)
    if sft is None:
        shared.add_adapter(name, lora_config(config, shared), head=True)
    else:
        _check_copy(shared.configs[sft], config)
        shared.copy_adapter(sft, name)
        shared.add_head(name)
        _freeze_other_layers(shared, name, config.lora_layers)
    return adapter_critic(shared, name)


def _check_layers(shared: SharedModel, config: RewardConfig) -> None:
    count = shared.base.config.get_text_config().num_hidden_layers
    if config.lora_layers is not None and not (config.lora_layers and all(0 <= i < count for i in config.lora_layers)):
        raise UsageError(
            f"lora_layers={config.lora_layers} cannot be used: the model has decoder layers 0 to {count - 1}. "
            "Name some of them, or leave lora_layers out for all."
        )


def _check_copy(sft: LoraConfig, config: RewardConfig) -> None:
    """A field at its default follows the SFT adapter; another value would be ignored."""
    targets = sft.target_modules if isinstance(sft.target_modules, str) else sorted(sft.target_modules or [])
    asked_targets = None if config.lora_target_modules is None else sorted(config.lora_target_modules)
    for name, asked, own in (
        ("lora_r", config.lora_r, sft.r),
        ("lora_alpha", config.lora_alpha, sft.lora_alpha),
        ("lora_target_modules", asked_targets, targets),
    ):
        if asked not in (RewardConfig.__dataclass_fields__[name].default, own):
            raise UsageError(
                f"{name}={asked!r} has no effect: the reward model starts as a copy of the SFT adapter, which has "
                f"{own!r}. Leave {name} out, or start from a full model."
            )


def _freeze_other_layers(shared: SharedModel, name: str, layers: list[int] | None) -> None:
    trained = 0
    for key, parameter in shared.named_parameters(name):
        found = _LAYER_INDEX.match(key)
        if layers is None or found is None or int(found[1]) in layers:
            trained += not key.startswith("head.")
        else:
            parameter.requires_grad_(False)
    if not trained:
        shared.remove_adapter(name)
        raise UsageError(f"the SFT adapter has nothing on lora_layers={layers}; choose layers that it adapts.")
