"""SwiGLU in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kernels.precision import wide


def swiglu(*, gate: Tensor, up: Tensor) -> Tensor:
    """The specification of `rlhf_kernels.swiglu`."""
    return (wide(gate) * torch.sigmoid(wide(gate)) * wide(up)).to(gate.dtype)


def swiglu_backward(*, gate: Tensor, up: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """d_gate and d_up; silu'(x) = s (1 + x (1 - s)) with s = sigmoid(x)."""
    gate_, up_, dy_ = wide(gate), wide(up), wide(dy)
    open_ = torch.sigmoid(gate_)
    d_gate = dy_ * up_ * open_ * (1 + gate_ * (1 - open_))
    return d_gate.to(gate.dtype), (dy_ * gate_ * open_).to(gate.dtype)
