"""`rotary` as a torch op: its gradient is itself, turning back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rlhf_kernels import backends
from rlhf_kernels.library import Arguments, define, define_gradient
from rlhf_kernels.rotary import native, reference, triton

backends.register("rotary", "native", native.rotary, native.supports)
backends.register("rotary", "triton", triton.rotary, triton.supports)
backends.register("rotary", "reference", reference.rotary)


def _fake(args: Arguments) -> tuple[Tensor, Tensor]:
    q, k = args["q"], args["k"]
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _keep(ctx: Any, args: Arguments, results: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(args["cos"], args["sin"])
    ctx.inverse, ctx.backend = args["inverse"], args["backend"]
    ctx.shapes = args["q"].shape, args["k"].shape


def _gradients(ctx: Any, dq: Tensor | None, dk: Tensor | None) -> Mapping[str, Tensor | None]:
    cos, sin = ctx.saved_tensors
    dq, dk = (cos.new_zeros(shape) if d is None else d for d, shape in zip((dq, dk), ctx.shapes, strict=True))
    dq, dk = rotary(dq, dk, cos, sin, not ctx.inverse, ctx.backend)
    return {"q": dq, "k": dk}


rotary = define(
    "rotary(Tensor q, Tensor k, Tensor cos, Tensor sin, bool inverse, str? backend) -> (Tensor, Tensor)", fake=_fake
)
define_gradient(rotary, keep=_keep, gradients=_gradients)
