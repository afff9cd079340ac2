"""What the C++ backends of the layer operations share: the level, the threads, and which tensors they take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf_kernels.extension import MISSING, native

LEVEL = "" if MISSING else native.levels()[-1]  # the fastest instruction set that the processor has


def cannot_take(args: Mapping[str, Any]) -> str | None:
    """Why the extension cannot take these tensors: it is missing, or they are not all bf16 or all float32 on a CPU."""
    if MISSING:
        return MISSING
    dtypes = set()
    for name, value in args.items():
        if isinstance(value, Tensor):
            if not value.is_cpu:
                return f"{name} is on {value.device}, and it runs on CPU tensors only"
            if name not in ("rstd", "log_sum"):
                dtypes.add(value.dtype)
    if dtypes not in ({torch.bfloat16}, {torch.float32}):
        return f"got {sorted(map(str, dtypes))}, and it takes bfloat16 or float32, the same for all"
    return None


def compute(x: Tensor) -> native.LayerCompute:
    return native.LayerCompute(LEVEL, x.dtype == torch.bfloat16, torch.get_num_threads())


def strided(x: Tensor) -> tuple[int, int, int]:
    """x (tokens, heads, head_dim) by address and strides: the caller keeps it alive and head_dim contiguous."""
    return x.data_ptr(), x.stride(0), x.stride(1)


def with_contiguous_heads(x: Tensor) -> Tensor:
    return x if x.shape[-1] == 1 or x.stride(-1) == 1 else x.contiguous()
