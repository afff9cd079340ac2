"""A run that needs more memory than there is: how that is told, what was held, and what would help."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

REMEDY = (
    "Lower max_tokens_per_micro_batch (auto_find_batch_size does it by itself) or max_rollout_batch, set "
    "activation_checkpointing, or start again with a smaller adapter (lora_r, lora_layers)"
)


def is_out_of_memory(error: BaseException) -> bool:
    """On a CUDA device torch has a class for it; on a CPU it raises a `RuntimeError` of its allocator."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def explain(error: BaseException, held: Mapping[str, int]) -> str:
    """What was asked for, what is held for the whole run (bytes by name), and what would help."""
    parts = ", ".join(f"{name} {_size(count)}" for name, count in held.items())
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return (
        f"out of memory: {reason.rstrip('.')}. Held all the time: {parts}; the rest is activations of a "
        f"micro-batch, or the key-value cache of a rollout. {REMEDY}."
    )


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Each storage once, whatever number of tensors share it."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
