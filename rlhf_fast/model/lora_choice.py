"""The LoRA choices of a stage's config as a PEFT `LoraConfig`."""

from __future__ import annotations

from peft import LoraConfig

from rlhf_fast.model.shared import SharedModel
from rlhf_fast.runtime.config import StageConfig


def lora_config(config: StageConfig, shared: SharedModel) -> LoraConfig:
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
        target_modules=config.lora_target_modules or shared.linear_layers,
        layers_to_transform=config.lora_layers,
    )
