"""SwiGLU and its gradient as Triton kernels: each entry is read once and written once, the arithmetic in float32."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from rlhf_kernels.triton_support import LAYER_DTYPES, POINTER, Variant

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
def swiglu(dtype: torch.dtype) -> Variant:
    """The form for entries of a dtype."""
    return _form("swiglu", swiglu_kernel, dtype, ("gate", "up", "y"), ("gate_stride", "up_stride"))


@cache
def swiglu_backward(dtype: torch.dtype) -> Variant:
    """The form for entries of a dtype."""
    tensors, strides = ("gate", "up", "dy", "d_gate", "d_up"), ("gate_stride", "up_stride", "dy_stride")
    return _form("swiglu_backward", swiglu_backward_kernel, dtype, tensors, strides)


VARIANTS = [form(dtype) for dtype in LAYER_DTYPES for form in (swiglu, swiglu_backward)]
