"""Memory: how much is free for more, how much a process has taken, and how a run tells that it was not enough."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import psutil
import torch
from torch import Tensor

from rlhf_fast.runtime.distributed import processes_here

CGROUP = Path("/sys/fs/cgroup")  # of a container, as it sees it
STATUS = Path("/proc/self/status")  # of this process, on Linux
REMEDY = (
    "Lower max_tokens_per_micro_batch (auto_find_batch_size does it by itself) or max_rollout_batch, set "
    "activation_checkpointing, or start again with a smaller adapter (lora_r, lora_layers)"
)


def free_bytes(device: torch.device) -> int:
    """Bytes that this process can still allocate on `device` without swapping: for a CPU, its share of what the machine
    and the container's limit leave."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for its next use
        return torch.cuda.mem_get_info(device)[0] + kept
    available = psutil.virtual_memory().available
    limited = container_room(CGROUP)
    left = available if limited is None else min(available, limited)
    return left // processes_here()


def container_room(cgroup: Path) -> int | None:
    """Bytes that the memory limit of a cgroup (version 2) leaves, file cache not counted; None where there is none."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((cgroup / "memory.current").read_text())
        cached = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    return max(0, int(limit) - used + int(cached["inactive_file"]))


def peak_bytes(device: torch.device | None) -> int:
    """The most that this process has held at once: of a GPU's memory for such a device, else of main memory.

    Where the system keeps no such record (macOS), what it holds now.
    """
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if STATUS.is_file():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    held = psutil.Process().memory_info()
    return getattr(held, "peak_wset", held.rss)


def give_back() -> None:
    """Return to the system what has been freed: the C library keeps blocks of up to 32 MB for the next use, so that
    what one phase has freed would add to the peak of the next. Only glibc is asked; CUDA memory is torch's to keep."""
    trim = getattr(_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@cache
def _library() -> ctypes.CDLL | None:
    """What this process has loaded, where a name finds its function; None on Windows."""
    return ctypes.CDLL(None) if os.name == "posix" else None


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
