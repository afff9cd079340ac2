"""`packed_attention` as a torch op, and its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf_kernels import backends
from rlhf_kernels.library import Arguments, define, define_gradient
from rlhf_kernels.packed_attention import flash, native, reference

for _name in ("packed_attention", "packed_attention_backward"):
    backends.register(_name, "native", getattr(native, _name), native.supports)
    backends.register(_name, "flash", getattr(flash, _name), flash.supports)
    backends.register(_name, "reference", getattr(reference, _name))


def _fake(args: Arguments) -> tuple[Tensor, Tensor]:
    q = args["q"]
    statistics = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=statistics)


def _fake_backward(args: Arguments) -> tuple[Tensor, ...]:
    return tuple(args[name].new_empty(args[name].shape) for name in ("q", "k", "v"))


def _keep(ctx: Any, args: Arguments, results: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(args["q"], args["k"], args["v"], *results)
    ctx.mark_non_differentiable(results[1])
    ctx.settings = args["offsets"], args["scale"], args["window"], args["backend"]


def _gradients(ctx: Any, d_out: Tensor | None, *_: Tensor | None) -> Mapping[str, Tensor | None]:
    if d_out is None:
        return {}
    gradients = packed_attention_backward(*ctx.saved_tensors, d_out, *ctx.settings)
    return dict(zip(("q", "k", "v"), gradients, strict=True))


packed_attention = define(
    "packed_attention(Tensor q, Tensor k, Tensor v, int[] offsets, float scale, int? window, str? backend) "
    "-> (Tensor, Tensor)",
    fake=_fake,
)
packed_attention_backward = define(
    "packed_attention_backward(Tensor q, Tensor k, Tensor v, Tensor out, Tensor log_sum, Tensor d_out, int[] offsets, "
    "float scale, int? window, str? backend) -> (Tensor, Tensor, Tensor)",
    fake=_fake_backward,
)
define_gradient(packed_attention, keep=_keep, gradients=_gradients)
