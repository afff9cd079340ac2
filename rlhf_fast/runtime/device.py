"""Where and in which precision a stage computes."""

from __future__ import annotations

import random

import torch

from rlhf_fast.runtime.distributed import world_size


def choose_device(use_cpu: bool) -> torch.device:
    return torch.device("cpu" if use_cpu or not torch.cuda.is_available() else "cuda")


def choose_dtype(dtype: str, device: torch.device, *, train_base: bool = False) -> torch.dtype:
    """`dtype="auto"`: bfloat16 where the hardware multiplies it, else float32.

    Full fine-tuning (`train_base`) updates the weights themselves, and bfloat16 would round small updates away:
    float32 there.
    """
    if dtype != "auto":
        return getattr(torch, dtype)
    return torch.bfloat16 if not train_base and has_bfloat16(device) else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not hasattr(torch.cpu, "get_capabilities"):  # before torch 2.11
        known = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(check() for check in known if check is not None)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def describe_device(dtype: torch.dtype, device: torch.device) -> str:
    """'bfloat16 on cuda (NVIDIA H100)'; of several processes, how many there are."""
    name = f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
    processes = f" in {world_size()} processes" if world_size() > 1 else ""
    return f"{str(dtype).removeprefix('torch.')} on {name}{processes}"


def seed_everything(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
