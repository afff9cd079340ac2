"""Where and in which precision a stage computes."""

from __future__ import annotations

import random

import torch

from rlhf_fast.runtime.config import StageConfig


def choose_device(config: StageConfig) -> torch.device:
    return torch.device("cpu" if config.use_cpu or not torch.cuda.is_available() else "cuda")


def choose_dtype(config: StageConfig, device: torch.device) -> torch.dtype:
    """`dtype="auto"`: bfloat16 where the hardware multiplies it (and adapters are trained), else float32.

    Full fine-tuning updates the weights themselves, and bfloat16 would round small updates away: float32 there.
    """
    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    return torch.bfloat16 if config.use_peft and has_bfloat16(device) else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def seed_everything(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
