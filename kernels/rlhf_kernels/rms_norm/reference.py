"""RMS norm in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kernels.precision import wide


def rms_norm(*, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The specification of `rlhf_kernels.rms_norm`, and 1 / sqrt(mean x^2 + eps) (...)."""
    rstd = torch.rsqrt(wide(x).square().mean(-1) + eps)
    return (wide(x) * rstd[..., None] * wide(weight)).to(x.dtype), rstd


def rms_norm_backward(
    *, x: Tensor, weight: Tensor, rstd: Tensor, dy: Tensor, weight_gradient: bool
) -> tuple[Tensor, Tensor]:
    """dx, and dweight or an empty tensor."""
    normed = wide(x) * rstd[..., None]
    gradient = wide(dy) * wide(weight)
    dx = (gradient - normed * (gradient * normed).mean(-1, keepdim=True)) * rstd[..., None]
    d_weight = (wide(dy) * normed).flatten(0, -2).sum(0).to(weight.dtype) if weight_gradient else weight.new_empty(0)
    return dx.to(x.dtype), d_weight
