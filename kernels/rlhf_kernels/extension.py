"""The C++ extension, which exists only where a compiler was found when the package was installed.

`native` is the module or None; where it is None, `MISSING` says why and what to do. `LEVEL` is the fastest of the
instruction sets that its kernels come in and the processor has. Below them: which tensors the C++ backends take, and
how tensors are handed over, by address.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

try:
    from rlhf_kernels import _native as native
except ImportError as error:
    native = None  # type: ignore[assignment]
    broken = [path for path in Path(__file__).parent.glob("_native.*") if path.suffix in (".so", ".pyd")]
    MISSING: str | None = (
        f"the C++ kernels {f'in {broken[0].name} cannot be loaded ({error})' if broken else 'are not built'}; to have "
        "them, install a C++17 compiler (such as g++) and the Python headers (such as python3-dev), then install "
        "rlhf-fast again with --force-reinstall --no-cache-dir"
    )
    LEVEL = ""
else:
    MISSING = None
    LEVEL = native.levels()[-1]


def column_refusal(a: Any) -> str | None:
    """Why the extension cannot take the arguments of a column op: it is missing, or a tensor is not one of a CPU, or
    not contiguous."""
    if MISSING:
        return MISSING
    for name, value in zip(a._fields, a, strict=True):
        if isinstance(value, Tensor) and not (value.is_cpu and value.is_contiguous()):
            if value.is_cpu:
                return f"{name} is not contiguous; call .contiguous() on it first"
            return f"{name} is on {value.device}, and it runs on CPU tensors only"
    return None


def layer_refusal(a: Any) -> str | None:
    """Why the extension cannot take the arguments of a layer's op: it is missing, or the tensors are not all bf16 or
    all float32 on a CPU. `rstd` and `log_sum`, which the forward pass left, are its own affair."""
    if MISSING:
        return MISSING
    dtypes = set()
    for name, value in zip(a._fields, a, strict=True):
        if isinstance(value, Tensor):
            if not value.is_cpu:
                return f"{name} is on {value.device}, and it runs on CPU tensors only"
            if name not in ("rstd", "log_sum"):
                dtypes.add(value.dtype)
    if dtypes not in ({torch.bfloat16}, {torch.float32}):
        return f"got {sorted(map(str, dtypes))}, and it takes bfloat16 or float32, the same for all"
    return None


def compute(x: Tensor) -> native.LayerCompute:
    """In what a layer's op computes for x: instruction set, dtype and threads."""
    return native.LayerCompute(LEVEL, x.dtype == torch.bfloat16, torch.get_num_threads())


def address(x: Tensor | None) -> int:
    """Where x begins, or 0: the caller keeps it alive."""
    return 0 if x is None else x.data_ptr()


def strided(x: Tensor) -> tuple[int, int, int]:
    """x (tokens, heads, head_dim) by address and strides: the caller keeps it alive and head_dim contiguous."""
    return x.data_ptr(), x.stride(0), x.stride(1)


def with_contiguous_heads(x: Tensor) -> Tensor:
    return x if x.shape[-1] == 1 or x.stride(-1) == 1 else x.contiguous()
