"""The precision that the references compute in: float32, and float64 where an input is."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(*operands: Tensor) -> torch.dtype:
    """float64 where an operand is, else float32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in operands) else torch.float32


def wide(x: Tensor) -> Tensor:
    """`x` in the precision that it is computed in."""
    return x.to(accumulation_dtype(x))
