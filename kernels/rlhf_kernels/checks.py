"""What the operations share about arguments: their checks, how they come to a device, and the precision that the
references compute in.

A check says what was got, what was expected and what to do. `check_values` and what calls it read the data, and so run
inside an op; the others look at shapes and dtypes only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def check_column(name: str, x: Tensor, length: int | None = None) -> None:
    """Raise unless `x` is a flat column of float32 or float64, of `length` where one is given; half precision is too
    coarse."""
    check_shape(name, x, (x.numel() if length is None else length,))
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} has dtype {x.dtype}, expected float32 or float64: convert it with .float()")


def check_same_dtype(**columns: Tensor) -> None:
    """Raise unless all of the named columns have one dtype."""
    if len({x.dtype for x in columns.values()}) > 1:
        got = ", ".join(f"{name} {x.dtype}" for name, x in columns.items())
        raise TypeError(f"got {got}, expected one dtype for all: convert them to the same one")


def check_shape(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless `x` has exactly this shape."""
    if x.shape != shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, expected {shape}: reshape or select its entries first")


def check_mask(name: str, mask: Tensor | None, shape: tuple[int, ...]) -> None:
    """Raise unless `mask` is None or a bool tensor of this shape."""
    if mask is None:
        return
    check_shape(name, mask, shape)
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} has dtype {mask.dtype}, expected bool: convert it with .bool()")


def check_offsets_type(name: str, offsets: Tensor) -> None:
    """Raise unless `offsets` are int32 of shape (B+1,)."""
    if offsets.dtype != torch.int32 or offsets.dim() != 1 or offsets.numel() == 0:
        raise TypeError(
            f"{name} is {offsets.dtype} of shape {tuple(offsets.shape)}, expected int32 offsets of shape (B+1,): "
            "build it as 0 followed by the running sum of the lengths"
        )


def check_offsets(name: str, offsets: Tensor, total: int) -> None:
    """Raise unless `offsets` (B+1,) rise from 0 to `total`, never falling. Reads the data."""
    if offsets.is_cpu:
        values = offsets.tolist()
        right = values[0] == 0 and values[-1] == total and values == sorted(values)
    else:
        right = (offsets[0] == 0) & (offsets[-1] == total) & (offsets.diff() >= 0).all()
    check_values(
        right,
        lambda: (
            f"{name} runs from {int(offsets[0])} to {int(offsets[-1])}, expected offsets that start at 0, never fall "
            f"and end at {total}, the length of the columns: build it from the lengths of the same columns"
        ),
    )


def check_values(right: Tensor | bool, message: Callable[[], str]) -> None:
    """Raise ValueError with the message unless `right` (bool, 0-dim) holds.

    On a GPU nothing waits for the answer: a wrong one ends the process at the next wait, with a device-side assertion.
    """
    if isinstance(right, Tensor) and not right.is_cpu:
        torch._assert_async(right, "rlhf_kernels: the values of an argument do not fit; run it on the CPU for details")
    elif not right:
        raise ValueError(message())


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on `device`; from the host to CUDA by way of pinned memory, so that nothing waits for the device."""
    if x.is_cpu and torch.device(device).type == "cuda":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def accumulation_dtype(*operands: Tensor) -> torch.dtype:
    """float64 where an operand is, else float32: what the references compute in."""
    return torch.float64 if any(x.dtype == torch.float64 for x in operands) else torch.float32


def wide(x: Tensor) -> Tensor:
    """`x` in the precision that it is computed in."""
    return x.to(accumulation_dtype(x))
