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
from rlhf_fast.runtime.phases import current

CGROUP = Path("/sys/fs/cgroup")  # of a container, as it sees it
STATUS = Path("/proc/self/status")  # of this process, on Linux
CLEAR_REFS = Path("/proc/self/clear_refs")  # a 5 written into it restarts the peak of the resident set there
_earlier: dict[str, int] = {}  # the most before the peak was restarted, by kind of device
OF_A_BATCH = (
    "activations of a micro-batch, and the process itself",
    "Lower max_tokens_per_micro_batch (auto_find_batch_size does it by itself), set activation_checkpointing, or start "
    "again with a smaller adapter (lora_r, lora_layers)",
)
OF_A_ROLLOUT = (
    "keys and values of a rollout, a packed copy of the weights, and the process itself",
    "Lower max_rollout_batch, max_kv_cache_gb or response_length; of a long prompt's first forward, "
    "max_tokens_per_micro_batch",
)
OF_A_STEP = (
    "the optimiser's moments and what a step takes, and the process itself",
    "Start again with a smaller adapter (lora_r, lora_layers), or with use_peft=true where all weights are trained",
)
WHAT = {"rollout": OF_A_ROLLOUT, "optimiser step": OF_A_STEP}
"""By the phase: what takes memory there beside what is held all the time, and what would help."""


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
    kind = "cuda" if device is not None and device.type == "cuda" else "cpu"
    return max(_earlier.get(kind, 0), recent_peak(device))


def recent_peak(device: torch.device | None) -> int:
    """`peak_bytes` since the last `restart_peak`."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if (peak := _status("VmHWM")) is not None:
        return peak
    held = psutil.Process().memory_info()
    return getattr(held, "peak_wset", held.rss)


def restart_peak(device: torch.device | None) -> bool:
    """From now on `recent_peak` is the most since now; `peak_bytes` stays that of the whole process.

    False where the system does not allow it (it is not Linux, or /proc may not be written): nothing is changed then.
    """
    kind = "cuda" if device is not None and device.type == "cuda" else "cpu"
    _earlier[kind] = peak_bytes(device)
    if kind == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def resident_bytes() -> int:
    """Main memory that this process holds now, shared libraries included."""
    held = _status("VmRSS")
    return psutil.Process().memory_info().rss if held is None else held


def _status(name: str) -> int | None:
    """A line of `STATUS` in bytes, None where there is none."""
    lines = STATUS.read_text().splitlines() if STATUS.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


def trim_memory() -> None:
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


def explain(error: BaseException, held: Mapping[str, int], device: torch.device | None = None) -> str:
    """Where memory was not enough and what for, a table of who held it then (bytes by name), and what would help.

    What `held` does not name is what the phase that is going on takes for itself: `WHAT` says what that is. Where a
    memory profile has counted that, too, it is in `held`.
    """
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    part = current()
    culprit, remedy = next((value for name, value in WHAT.items() if (part or "").startswith(name)), OF_A_BATCH)
    used = {name: count for name, count in held.items() if count}
    rest = max(0, _allocated(device) - sum(used.values()))
    if "activations" in used:  # a memory profile has counted what the phase takes
        culprit = "the process itself, and what libraries take"
    rows = [*sorted(used.items(), key=lambda row: -row[1]), (f"all else: {culprit}", rest)]
    width = max(len(name) for name, _ in rows)
    table = "".join(f"\n  {name:<{width}}  {_size(count):>9}" for name, count in rows)
    where = f" in {part}" if part else ""
    return f"out of memory{where}: {reason.rstrip('.')}. Held then:{table}\n{remedy}."


def _allocated(device: torch.device | None) -> int:
    """Bytes of a GPU that torch has given out, or of main memory that the process holds."""
    on_gpu = device is not None and device.type == "cuda"
    return torch.cuda.memory_allocated(device) if on_gpu else resident_bytes()


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Each storage once, whatever number of tensors share it."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
