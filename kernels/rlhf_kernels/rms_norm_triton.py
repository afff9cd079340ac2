"""RMS norm on a GPU: one launch forward and one backward, and a sum of partial sums where the weight trains. A program
holds whole rows, so that each entry is read and written once.

Statistics and products are float32. The gradient of the weight is a sum over rows: each program adds up its own, in a
fixed order, and whoever reads the partial sums adds those; no atomics, so that equal inputs give equal results.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlhf_kernels.rms_norm import Arguments, BackwardArguments
from rlhf_kernels.triton_support import LAYER_DTYPES, POINTER, Variant, as_rows, layer_refusal

MAX_WIDTH = {torch.float32: 8192, torch.bfloat16: 16384, torch.float16: 16384}  # a program holds a whole row
MAX_TRAINED_WIDTH = 8192  # and, where the weight trains, as many sums
# Width of a block -> rows of a program, warps: 8 or 16 entries a thread. Between two widths, lanes idle.
BLOCKS = {128: (16, 4), 2048: (1, 4), 4096: (1, 8), 8192: (1, 32), 16384: (1, 32)}
MAX_PARTS = 512  # programs that add up the gradient of the weight


@triton.jit(do_not_specialize=["rows"])
def rms_norm_kernel(
    x,  # (rows, width), rows `stride` apart
    weight,  # (width,)
    y,  # (rows, width)
    rstd,  # (rows,): 1 / sqrt(mean x^2 + eps)
    rows,
    width,
    stride,
    eps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program for ROWS rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < width)
    value = tl.load(x + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 1, keep_dims=True) / width + eps)
    tl.store(rstd + row, scale, mask=row < rows)
    factor = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    tl.store(y + row * width + column, (value * scale * factor).to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def rms_norm_backward_kernel(
    x,  # (rows, width), rows `x_stride` apart
    weight,  # (width,)
    rstd,  # (rows,)
    dy,  # (rows, width), rows `dy_stride` apart
    dx,  # (rows, width)
    parts,  # None, or (programs, width) float32: sums to the gradient of the weight
    rows,
    width,
    x_stride,
    dy_stride,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dx = rstd (weight dy - n mean(weight dy n)) with n = x rstd. Programs take blocks of ROWS rows in turn."""
    column = tl.arange(0, BLOCK)[None, :]
    if parts is not None:
        total = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        inside = (row < rows) & (column < width)
        scale = tl.load(rstd + row, mask=row < rows, other=0.0)
        normed = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32) * scale
        factor = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)  # held, it would spill
        upstream = tl.load(dy + row * dy_stride + column, mask=inside, other=0.0).to(tl.float32)
        gradient = upstream * factor
        along = tl.sum(gradient * normed, 1, keep_dims=True) / width
        tl.store(dx + row * width + column, ((gradient - normed * along) * scale).to(dx.dtype.element_ty), mask=inside)
        if parts is not None:
            total += upstream * normed
    if parts is not None:
        own = parts + tl.program_id(0).to(tl.int64) * width
        tl.store(own + column, tl.sum(total, 0, keep_dims=True), mask=column < width)


def block_of(width: int) -> int:
    """The narrowest block that holds a row."""
    return next(block for block in BLOCKS if block >= width)


@cache
def form(dtype: torch.dtype, block: int) -> Variant:
    """The form for entries of a dtype and rows of at most `block` entries."""
    pointer, (rows, warps) = POINTER[dtype], BLOCKS[block]
    signature = {"x": pointer, "weight": pointer, "y": pointer, "rstd": "*fp32"}
    signature |= {"rows": "i32", "width": "i32", "stride": "i32", "eps": "fp32"}
    return Variant("rms_norm", rms_norm_kernel, signature, {"ROWS": rows, "BLOCK": block}, num_warps=warps)


@cache
def backward_form(dtype: torch.dtype, block: int, *, weight_gradient: bool) -> Variant:
    """The form for entries of a dtype and rows of at most `block`, with or without the gradient of the weight."""
    pointer, (rows, warps) = POINTER[dtype], BLOCKS[block]
    warps = max(warps, 8) if weight_gradient else warps  # fewer entries a thread, beside as many sums
    signature = {"x": pointer, "weight": pointer, "rstd": "*fp32", "dy": pointer, "dx": pointer}
    signature |= {"parts": "*fp32"} if weight_gradient else {}
    signature |= {"rows": "i32", "width": "i32", "x_stride": "i32", "dy_stride": "i32"}
    constants = {"ROWS": rows, "BLOCK": block} | ({} if weight_gradient else {"parts": None})
    return Variant("rms_norm_backward", rms_norm_backward_kernel, signature, constants, num_warps=warps)


_FORMS = [(dtype, block) for dtype in LAYER_DTYPES for block in BLOCKS if block <= MAX_WIDTH[dtype]]
VARIANTS = [
    *(form(dtype, block) for dtype, block in _FORMS),
    *(
        backward_form(dtype, block, weight_gradient=gradient)
        for dtype, block in _FORMS
        for gradient in (False, True)
        if block <= MAX_TRAINED_WIDTH or not gradient
    ),
]


def refusal(a: Arguments | BackwardArguments) -> str | None:
    """Why Triton cannot take these rows, or None."""
    width = a.weight.shape[0]
    if (refused := layer_refusal(a)) is not None:
        return refused
    if width > MAX_WIDTH[a.x.dtype]:
        return f"rows have {width} entries, and it takes at most {MAX_WIDTH[a.x.dtype]} in {a.x.dtype}"
    if width > MAX_TRAINED_WIDTH and isinstance(a, BackwardArguments) and a.weight_gradient:
        return f"rows have {width} entries, and where the weight trains it takes at most {MAX_TRAINED_WIDTH}"
    return None


def rms_norm(a: Arguments) -> tuple[Tensor, Tensor]:
    """As the reference; arguments are taken as checked and supported."""
    x = a.x
    y, rstd = x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)
    if x.numel() == 0:
        return y, rstd.fill_(torch.nan)  # the mean of rows without entries
    flat, variant = as_rows(x), form(x.dtype, block_of(x.shape[-1]))
    rows, width = flat.shape
    variant.launch(
        (-(-rows // variant.constants["ROWS"]),),
        x=flat,
        weight=a.weight.contiguous(),
        y=y,
        rstd=rstd,
        rows=rows,
        width=width,
        stride=flat.stride(0),
        eps=a.eps,
    )
    return y, rstd


def rms_norm_backward(a: BackwardArguments) -> tuple[Tensor, Tensor]:
    """As the reference; arguments are taken as checked and supported."""
    dx = a.x.new_empty(a.x.shape)
    if a.x.numel() == 0:
        return dx, a.weight.new_zeros(a.weight.shape if a.weight_gradient else 0)
    variant = backward_form(a.x.dtype, block_of(a.x.shape[-1]), weight_gradient=a.weight_gradient)
    x, dy = as_rows(a.x), as_rows(a.dy)
    (rows, width), programs = x.shape, -(-x.shape[0] // variant.constants["ROWS"])
    if a.weight_gradient:
        programs = min(programs, MAX_PARTS)
    parts = a.rstd.new_empty(programs, width) if a.weight_gradient else None
    variant.launch(
        (programs,),
        x=x,
        weight=a.weight.contiguous(),
        rstd=a.rstd.contiguous(),
        dy=dy,
        dx=dx,
        parts=parts,
        rows=rows,
        width=width,
        x_stride=x.stride(0),
        dy_stride=dy.stride(0),
    )
    return dx, a.weight.new_empty(0) if parts is None else parts.sum(0).to(a.weight.dtype)
