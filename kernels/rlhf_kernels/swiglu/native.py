"""SwiGLU in C++: one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kernels.extension import native
from rlhf_kernels.layer_native import cannot_take, compute

supports = cannot_take


def swiglu(*, gate: Tensor, up: Tensor) -> Tensor:
    """As the reference; arguments are taken as checked and supported."""
    gate, up = gate.contiguous(), up.contiguous()
    y = torch.empty_like(gate)
    native.swiglu(gate.data_ptr(), up.data_ptr(), y.data_ptr(), y.numel(), compute(gate))
    return y


def swiglu_backward(*, gate: Tensor, up: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """As the reference; arguments are taken as checked and supported."""
    gate, up, dy = gate.contiguous(), up.contiguous(), dy.contiguous()
    d_gate, d_up = torch.empty_like(gate), torch.empty_like(gate)
    inputs = gate.data_ptr(), up.data_ptr(), dy.data_ptr()
    native.swiglu_backward(*inputs, d_gate.data_ptr(), d_up.data_ptr(), gate.numel(), compute(gate))
    return d_gate, d_up
