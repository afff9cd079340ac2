"""Root-mean-square normalisation of rows (Zhang and Sennrich 2019), and its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_kernels.checks import accumulation_dtype, check_same_dtype, check_shape, wide
from rlhf_kernels.extension import compute, layer_refusal, native
from rlhf_kernels.op import Backend, Gradient, NoLoss, Op
from rlhf_kernels.triton_support import in_triton

__all__ = ["rms_norm"]

TRITON = "rlhf_kernels.rms_norm_triton"


class Arguments(NamedTuple):
    """Results: y as x, and rstd (...) = 1 / sqrt(mean x^2 + eps) in the precision of the statistics."""

    x: Tensor  # (..., K)
    weight: Tensor  # (K,)
    eps: float


class BackwardArguments(NamedTuple):
    """Results: dx as x, and the gradient of the weight (K,), or (0,) where it is not wanted."""

    x: Tensor  # (..., K)
    weight: Tensor  # (K,)
    rstd: Tensor  # (...)
    dy: Tensor  # as x
    weight_gradient: bool


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, backend: str | None = None) -> Tensor:
    """x / sqrt(mean x^2 + eps) * weight over the last dimension: x (..., K), weight (K,) -> (..., K).

    x and weight share a dtype; statistics and products are float32 (float64 for float64), and the result is rounded
    to x's dtype once. Differentiable in both; a weight that needs no gradient costs none. Nothing is mutated.
    `backend` is "native" (C++, CPU; not where the weight needs a gradient), "triton" (CUDA; float64 not, K up to 16384,
    or 8192 where the weight needs a gradient) or "reference"; None as everywhere.
    Raises ValueError or TypeError for shapes and dtypes that do not fit.
    """
    check_shape("weight", weight, (x.shape[-1],))
    check_same_dtype(x=x, weight=weight)
    return RMS_NORM(Arguments(x, weight, eps), backend)[0]


def _reference(a: Arguments) -> tuple[Tensor, Tensor]:
    """The specification."""
    rstd = torch.rsqrt(wide(a.x).square().mean(-1) + a.eps)
    return (wide(a.x) * rstd[..., None] * wide(a.weight)).to(a.x.dtype), rstd


def _reference_backward(a: BackwardArguments) -> tuple[Tensor, Tensor]:
    normed = wide(a.x) * a.rstd[..., None]
    gradient = wide(a.dy) * wide(a.weight)
    dx = (gradient - normed * (gradient * normed).mean(-1, keepdim=True)) * a.rstd[..., None]
    if not a.weight_gradient:
        return dx.to(a.x.dtype), a.weight.new_empty(0)
    return dx.to(a.x.dtype), (wide(a.dy) * normed).flatten(0, -2).sum(0).to(a.weight.dtype)


def _native_refusal(a: BackwardArguments) -> str | None:
    if a.weight_gradient:
        return NoLoss("weight needs a gradient, and it gives that of x only; freeze weight or leave it")
    return layer_refusal(a)


def _native(a: Arguments) -> tuple[Tensor, Tensor]:
    """A row is read twice, the second time from cache."""
    x, weight = a.x.contiguous(), a.weight.contiguous()
    y, rstd = torch.empty_like(x), torch.empty(x.shape[:-1])
    addresses = x.data_ptr(), weight.data_ptr(), y.data_ptr(), rstd.data_ptr()
    native.rms_norm(*addresses, rstd.numel(), x.shape[-1], a.eps, compute(x))
    return y, rstd


def _native_backward(a: BackwardArguments) -> tuple[Tensor, Tensor]:
    x, weight, dy = a.x.contiguous(), a.weight.contiguous(), a.dy.contiguous()
    dx = torch.empty_like(x)
    addresses = x.data_ptr(), weight.data_ptr(), dy.data_ptr(), a.rstd.data_ptr(), dx.data_ptr()
    native.rms_norm_backward(*addresses, a.rstd.numel(), x.shape[-1], compute(x))
    return dx, weight.new_empty(0)


def _fake(a: Arguments) -> tuple[Tensor, Tensor]:
    return a.x.new_empty(a.x.shape), a.x.new_empty(a.x.shape[:-1], dtype=accumulation_dtype(a.x))


def _fake_backward(a: BackwardArguments) -> tuple[Tensor, Tensor]:
    return a.x.new_empty(a.x.shape), a.weight.new_empty(a.weight.shape if a.weight_gradient else (0,))


def _keep(ctx: Any, a: Arguments, results: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(a.x, a.weight, results[1])
    ctx.mark_non_differentiable(results[1])


def _gradients(ctx: Any, dy: Tensor | None, *_: Tensor | None) -> Mapping[str, Tensor | None]:
    if dy is None:
        return {}
    x, weight, rstd = ctx.saved_tensors
    weight_gradient = ctx.needs_input_grad[1]
    dx, d_weight = RMS_NORM_BACKWARD(BackwardArguments(x, weight, rstd, dy, weight_gradient), ctx.backend)
    return {"x": dx, "weight": d_weight if weight_gradient else None}


RMS_NORM = Op(
    "rms_norm",
    Arguments,
    "(Tensor, Tensor)",
    fake=_fake,
    gradient=Gradient(_keep, _gradients),
    backends={
        "native": Backend(_native, layer_refusal),
        "triton": in_triton(TRITON, "rms_norm"),
        "reference": Backend(_reference),
    },
)
RMS_NORM_BACKWARD = Op(
    "rms_norm_backward",
    BackwardArguments,
    "(Tensor, Tensor)",
    fake=_fake_backward,
    backends={
        "native": Backend(_native_backward, _native_refusal),
        "triton": in_triton(TRITON, "rms_norm_backward"),
        "reference": Backend(_reference_backward),
    },
)
