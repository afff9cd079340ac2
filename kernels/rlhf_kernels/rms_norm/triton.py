"""RMS norm on a GPU: one launch forward and one backward, and a sum of partial sums where the weight trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf_kernels.triton_support import as_rows, layer_cannot_run

MAX_WIDTH = 16384  # a program holds a whole row
MAX_TRAINED_WIDTH = 8192  # and, where the weight trains, as many sums


def supports(args: Mapping[str, Any]) -> str | None:
    """Why Triton cannot take these arguments of `rms_norm` or its backward, or None."""
    width = args["weight"].shape[0]
    if width > MAX_WIDTH:
        return f"rows have {width} entries, and it takes at most {MAX_WIDTH}"
    if width > MAX_TRAINED_WIDTH and args.get("weight_gradient"):
        return f"rows have {width} entries, and where the weight trains it takes at most {MAX_TRAINED_WIDTH}"
    return layer_cannot_run(args)


def rms_norm(*, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As the reference; arguments are taken as checked and supported."""
    from rlhf_kernels.rms_norm import triton_kernels as kernels

    y, rstd = x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)
    if x.numel() == 0:
        return y, rstd.fill_(torch.nan)  # the mean of rows without entries
    flat, form = as_rows(x), kernels.rms_norm(x.dtype, kernels.block_of(x.shape[-1]))
    rows, width = flat.shape
    form.launch(
        (-(-rows // form.constants["ROWS"]),),
        x=flat,
        weight=weight.contiguous(),
        y=y,
        rstd=rstd,
        rows=rows,
        width=width,
        stride=flat.stride(0),
        eps=eps,
    )
    return y, rstd


def rms_norm_backward(
    *, x: Tensor, weight: Tensor, rstd: Tensor, dy: Tensor, weight_gradient: bool
) -> tuple[Tensor, Tensor]:
    """As the reference; arguments are taken as checked and supported."""
    from rlhf_kernels.rms_norm import triton_kernels as kernels

    dx = x.new_empty(x.shape)
    if x.numel() == 0:
        return dx, weight.new_zeros(weight.shape if weight_gradient else 0)
    form = kernels.rms_norm_backward(x.dtype, kernels.block_of(x.shape[-1]), weight_gradient=weight_gradient)
    x, dy = as_rows(x), as_rows(dy)
    (rows, width), programs = x.shape, -(-x.shape[0] // form.constants["ROWS"])
    if weight_gradient:
        programs = min(programs, kernels.MAX_PARTS)
    parts = rstd.new_empty(programs, width) if weight_gradient else None
    form.launch(
        (programs,),
        x=x,
        weight=weight.contiguous(),
        rstd=rstd.contiguous(),
        dy=dy,
        dx=dx,
        parts=parts,
        rows=rows,
        width=width,
        x_stride=x.stride(0),
        dy_stride=dy.stride(0),
    )
    return dx, weight.new_empty(0) if parts is None else parts.sum(0).to(weight.dtype)
