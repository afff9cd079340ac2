"""Where and in which precision a stage computes."""

from __future__ import annotations

import os
import random

import torch

from rlhf_fast.runtime.distributed import world_size
from rlhf_fast.runtime.shown import notices

COMPILED_PRODUCTS = 64
"""How many matrix products oneDNN keeps compiled. Packed micro-batches have ever new lengths, and with its default of
1024 a run of 16 steps of a 135M model held 240 MB of products that never came again; a pass has about 30 of one length.
"""


def choose_device(use_cpu: bool) -> torch.device:
    """The GPU if there is one. On a CPU oneDNN keeps fewer compiled products from then on (`COMPILED_PRODUCTS`), unless
    ONEDNN_PRIMITIVE_CACHE_CAPACITY is set or a product was computed before, when it read that variable."""
    if use_cpu or not torch.cuda.is_available():
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(COMPILED_PRODUCTS))
        return torch.device("cpu")
    return torch.device("cuda")


def float32_is_exact(device: torch.device) -> bool:
    """Whether products of float32 are float32's on `device`: TF32, which a GPU can put in their place, has no more bits
    of precision than float16."""
    if device.type != "cuda":
        return True
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # where a program has set it by its newer name: `fp32_precision`
        return torch.backends.cuda.matmul.fp32_precision == "ieee"


def forbid_tf32(device: torch.device) -> None:
    """Products of float32 are in float32 from now on; says so where they were not."""
    if not float32_is_exact(device):
        notices.info("products of float32 were allowed to be in TF32, and are in float32 from now on")
        torch.set_float32_matmul_precision("highest")


def choose_dtype(dtype: str, device: torch.device, *, train_base: bool = False) -> torch.dtype:
    """`dtype="auto"`: bfloat16 where the hardware multiplies it, else float32. Forbids TF32 on a GPU: heads, log-probs
    and optimiser compute in float32 beside a base in bfloat16.

    Full fine-tuning (`train_base`) updates the weights themselves, and bfloat16 would round small updates away:
    float32 there.
    """
    forbid_tf32(device)
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


def describe_sizes(tokens: int, *, recompute: bool, attention: str | None, responses: int | None = None) -> str:
    """What follows from the device or was chosen for it: 'micro-batches of 4,096 tokens, flash attention'."""
    parts = [f"micro-batches of {tokens:,} tokens"]
    parts += [f"up to {responses:,} responses at a time"] if responses is not None else []
    parts += ["activations computed again in backward"] if recompute else []
    return ", ".join([*parts, f"{attention} attention" if attention else "attention in torch, a sequence at a time"])


def seed_everything(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
