"""RMS norm in C++: a row is read twice, the second time from cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf_kernels.backends import Meant
from rlhf_kernels.extension import native
from rlhf_kernels.layer_native import cannot_take, compute


def supports(args: Mapping[str, Any]) -> str | None:
    """Why the extension cannot take these arguments of `rms_norm` or its backward, or None."""
    if args.get("weight_gradient"):
        return Meant("weight needs a gradient, and it gives that of x only; freeze weight or leave it")
    return cannot_take(args)


def rms_norm(*, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As the reference; arguments are taken as checked and supported."""
    x, weight = x.contiguous(), weight.contiguous()
    y, rstd = torch.empty_like(x), torch.empty(x.shape[:-1])
    addresses = x.data_ptr(), weight.data_ptr(), y.data_ptr(), rstd.data_ptr()
    native.rms_norm(*addresses, rstd.numel(), x.shape[-1], eps, compute(x))
    return y, rstd


def rms_norm_backward(
    *,
    x: Tensor,
    weight: Tensor,
    rstd: Tensor,
    dy: Tensor,
    weight_gradient: bool,  # has to be False
) -> tuple[Tensor, Tensor]:
    """As the reference; arguments are taken as checked and supported."""
    x, weight, dy = x.contiguous(), weight.contiguous(), dy.contiguous()
    dx = torch.empty_like(x)
    addresses = x.data_ptr(), weight.data_ptr(), dy.data_ptr(), rstd.data_ptr(), dx.data_ptr()
    native.rms_norm_backward(*addresses, rstd.numel(), x.shape[-1], compute(x))
    return dx, weight.new_empty(0)
