"""The gated unit of a SwiGLU feed-forward block (Shazeer 2020): silu(gate) * up, and its gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_kernels.checks import check_same_dtype, check_shape, wide
from rlhf_kernels.extension import compute, layer_refusal, native
from rlhf_kernels.op import Backend, Gradient, Op
from rlhf_kernels.triton_support import in_triton

__all__ = ["swiglu"]

TRITON = "rlhf_kernels.swiglu_triton"


class Arguments(NamedTuple):
    gate: Tensor
    up: Tensor  # as gate


class BackwardArguments(NamedTuple):
    """Results: the gradients of gate and up."""

    gate: Tensor
    up: Tensor  # as gate
    dy: Tensor  # as gate


def swiglu(gate: Tensor, up: Tensor, *, backend: str | None = None) -> Tensor:
    """gate sigmoid(gate) up, entry by entry, all of one shape and dtype.

    Computed in float32 (float64 for float64) and rounded once. Both gradients come from one pass over gate, up and
    the result's gradient. Nothing is mutated. `backend` is "native" (C++, CPU), "triton" (CUDA; float64 not) or
    "reference"; None as everywhere.
    Raises ValueError or TypeError for shapes and dtypes that do not fit.
    """
    check_shape("up", up, tuple(gate.shape))
    check_same_dtype(gate=gate, up=up)
    return SWIGLU(Arguments(gate, up), backend)


def _reference(a: Arguments) -> Tensor:
    """The specification."""
    return (wide(a.gate) * torch.sigmoid(wide(a.gate)) * wide(a.up)).to(a.gate.dtype)


def _reference_backward(a: BackwardArguments) -> tuple[Tensor, Tensor]:
    """silu'(x) = s (1 + x (1 - s)) with s = sigmoid(x)."""
    gate, up, dy = wide(a.gate), wide(a.up), wide(a.dy)
    open_ = torch.sigmoid(gate)
    d_gate = dy * up * open_ * (1 + gate * (1 - open_))
    return d_gate.to(a.gate.dtype), (dy * gate * open_).to(a.gate.dtype)


def _native(a: Arguments) -> Tensor:
    """One pass."""
    gate, up = a.gate.contiguous(), a.up.contiguous()
    y = torch.empty_like(gate)
    native.swiglu(gate.data_ptr(), up.data_ptr(), y.data_ptr(), y.numel(), compute(gate))
    return y


def _native_backward(a: BackwardArguments) -> tuple[Tensor, Tensor]:
    gate, up, dy = a.gate.contiguous(), a.up.contiguous(), a.dy.contiguous()
    d_gate, d_up = torch.empty_like(gate), torch.empty_like(gate)
    native.swiglu_backward(
        gate.data_ptr(), up.data_ptr(), dy.data_ptr(), d_gate.data_ptr(), d_up.data_ptr(), gate.numel(), compute(gate)
    )
    return d_gate, d_up


def _like_gate(a: Arguments | BackwardArguments) -> Tensor:
    return a.gate.new_empty(a.gate.shape)


def _keep(ctx: Any, a: Arguments, results: Any) -> None:
    ctx.save_for_backward(a.gate, a.up)


def _gradients(ctx: Any, dy: Tensor | None) -> Mapping[str, Tensor | None]:
    if dy is None:
        return {}
    gate, up = ctx.saved_tensors
    d_gate, d_up = SWIGLU_BACKWARD(BackwardArguments(gate, up, dy), ctx.backend)
    return {"gate": d_gate, "up": d_up}


SWIGLU = Op(
    "swiglu",
    Arguments,
    "Tensor",
    fake=_like_gate,
    gradient=Gradient(_keep, _gradients),
    backends={
        "native": Backend(_native, layer_refusal),
        "triton": in_triton(TRITON, "swiglu"),
        "reference": Backend(_reference),
    },
)
SWIGLU_BACKWARD = Op(
    "swiglu_backward",
    BackwardArguments,
    "(Tensor, Tensor)",
    fake=lambda a: (_like_gate(a), _like_gate(a)),
    backends={
        "native": Backend(_native_backward, layer_refusal),
        "triton": in_triton(TRITON, "swiglu_backward"),
        "reference": Backend(_reference_backward),
    },
)
