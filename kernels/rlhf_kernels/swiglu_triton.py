"""SwiGLU on a GPU: one launch forward, one backward for both gradients.

Each entry is read once and written once, the arithmetic in float32.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlhf_kernels.swiglu import Arguments, BackwardArguments
from rlhf_kernels.triton_support import LAYER_DTYPES, POINTER, Variant, as_rows, layer_refusal

refusal = layer_refusal

BLOCK = 1024  # entries of a program: 16 bytes of bf16 a thread


@triton.jit
def swiglu_kernel(
    gate,  # (rows, width), rows `gate_stride` apart
    up,  # (rows, width), rows `up_stride` apart
    y,  # (rows, width)
    width,
    gate_stride,
    up_stride,
    BLOCK: tl.constexpr,
):
    """y = gate sigmoid(gate) up. One program per block of a row."""
    blocks = tl.cdiv(width, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    g = tl.load(gate + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * width + column, (g * tl.sigmoid(g) * u).to(y.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_backward_kernel(
    gate,  # (rows, width), rows `gate_stride` apart
    up,  # (rows, width), rows `up_stride` apart
    dy,  # (rows, width), rows `dy_stride` apart
    d_gate,  # (rows, width)
    d_up,  # (rows, width)
    width,
    gate_stride,
    up_stride,
    dy_stride,
    BLOCK: tl.constexpr,
):
    """Both gradients; silu'(x) = s (1 + x (1 - s)) with s = sigmoid(x). One program per block of a row."""
    blocks = tl.cdiv(width, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    g = tl.load(gate + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(dy + row * dy_stride + column, mask=inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(g)
    at = row * width + column
    tl.store(d_gate + at, (d * u * (s * (1.0 + g * (1.0 - s)))).to(d_gate.dtype.element_ty), mask=inside)
    tl.store(d_up + at, (d * (g * s)).to(d_up.dtype.element_ty), mask=inside)


def _form(name: str, kernel: object, dtype: torch.dtype, tensors: tuple[str, ...], strides: tuple[str, ...]) -> Variant:
    signature = dict.fromkeys(tensors, POINTER[dtype]) | dict.fromkeys(("width", *strides), "i32")
    return Variant(name, kernel, signature, {"BLOCK": BLOCK}, num_warps=4)


@cache
def form(dtype: torch.dtype) -> Variant:
    """The form for entries of a dtype."""
    return _form("swiglu", swiglu_kernel, dtype, ("gate", "up", "y"), ("gate_stride", "up_stride"))


@cache
def backward_form(dtype: torch.dtype) -> Variant:
    """The form for entries of a dtype."""
    tensors, strides = ("gate", "up", "dy", "d_gate", "d_up"), ("gate_stride", "up_stride", "dy_stride")
    return _form("swiglu_backward", swiglu_backward_kernel, dtype, tensors, strides)


VARIANTS = [of(dtype) for dtype in LAYER_DTYPES for of in (form, backward_form)]


def swiglu(a: Arguments) -> Tensor:
    """As the reference; arguments are taken as checked and supported."""
    y = a.gate.new_empty(a.gate.shape)
    if y.numel() == 0:
        return y
    gate, up = _flat(a.gate, a.up)
    form(a.gate.dtype).launch(
        _grid(gate),
        gate=gate,
        up=up,
        y=y,
        width=gate.shape[1],
        gate_stride=gate.stride(0),
        up_stride=up.stride(0),
    )
    return y


def swiglu_backward(a: BackwardArguments) -> tuple[Tensor, Tensor]:
    """As the reference; arguments are taken as checked and supported."""
    d_gate, d_up = (a.gate.new_empty(a.gate.shape) for _ in range(2))
    if d_gate.numel() == 0:
        return d_gate, d_up
    gate, up, dy = _flat(a.gate, a.up, a.dy)
    backward_form(a.gate.dtype).launch(
        _grid(gate),
        gate=gate,
        up=up,
        dy=dy,
        d_gate=d_gate,
        d_up=d_up,
        width=gate.shape[1],
        gate_stride=gate.stride(0),
        up_stride=up.stride(0),
        dy_stride=dy.stride(0),
    )
    return d_gate, d_up


def _flat(*given: Tensor) -> list[Tensor]:
    """As rows; as a single one where every tensor is contiguous, so that narrow rows fill the blocks as well."""
    if given[0].numel() < 2**31 and all(x.is_contiguous() for x in given):
        return [x.view(1, -1) for x in given]
    return [as_rows(x) for x in given]


def _grid(x: Tensor) -> tuple[int]:
    return (x.shape[0] * -(-x.shape[1] // BLOCK),)
