"""`rms_norm` as a torch op, and its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf_kernels import backends
from rlhf_kernels.library import Arguments, define, define_gradient
from rlhf_kernels.rms_norm import native, reference, triton

for _name in ("rms_norm", "rms_norm_backward"):
    backends.register(_name, "native", getattr(native, _name), native.supports)
    backends.register(_name, "triton", getattr(triton, _name), triton.supports)
    backends.register(_name, "reference", getattr(reference, _name))


def _fake(args: Arguments) -> tuple[Tensor, Tensor]:
    x = args["x"]
    statistics = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=statistics)


def _fake_backward(args: Arguments) -> tuple[Tensor, Tensor]:
    x, weight = args["x"], args["weight"]
    return x.new_empty(x.shape), weight.new_empty(weight.shape if args["weight_gradient"] else (0,))


def _keep(ctx: Any, args: Arguments, results: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(args["x"], args["weight"], results[1])
    ctx.mark_non_differentiable(results[1])
    ctx.backend = args["backend"]


def _gradients(ctx: Any, dy: Tensor | None, *_: Tensor | None) -> Mapping[str, Tensor | None]:
    if dy is None:
        return {}
    x, weight, rstd = ctx.saved_tensors
    weight_gradient = ctx.needs_input_grad[1]
    dx, d_weight = rms_norm_backward(x, weight, rstd, dy, weight_gradient, ctx.backend)
    return {"x": dx, "weight": d_weight if weight_gradient else None}


rms_norm = define("rms_norm(Tensor x, Tensor weight, float eps, str? backend) -> (Tensor, Tensor)", fake=_fake)
rms_norm_backward = define(
    "rms_norm_backward(Tensor x, Tensor weight, Tensor rstd, Tensor dy, bool weight_gradient, str? backend) "
    "-> (Tensor, Tensor)",
    fake=_fake_backward,
)
define_gradient(rms_norm, keep=_keep, gradients=_gradients)
