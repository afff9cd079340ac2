"""`ppo_loss` as a torch op: metrics (8,), of which the first is the loss, and its gradients from the same pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rlhf_kernels import backends
from rlhf_kernels.library import Arguments, define, define_gradient
from rlhf_kernels.ppo_loss import native, reference, triton

backends.register("ppo_loss", "native", native.ppo_loss, native.supports)
backends.register("ppo_loss", "triton", triton.ppo_loss, triton.supports)
backends.register("ppo_loss", "reference", reference.ppo_loss)


def _fake(args: Arguments) -> tuple[Tensor, ...]:
    slots = args["logprobs"].shape[0]
    sizes = (8, slots, slots, 0 if args["entropy"] is None else slots)
    return tuple(args["logprobs"].new_empty(size) for size in sizes)


def _keep(ctx: Any, args: Arguments, results: tuple[Tensor, ...]) -> None:
    has_entropy = args["entropy"] is not None and args["entropy_coef"] != 0  # else no gradient is computed for zeros
    ctx.names = ("logprobs", "values", "entropy") if has_entropy else ("logprobs", "values")
    ctx.save_for_backward(*results[1 : 1 + len(ctx.names)])


def _gradients(ctx: Any, d_metrics: Tensor | None, *_: Tensor | None) -> Mapping[str, Tensor | None]:
    if d_metrics is None:
        return {}
    d_loss = d_metrics[0]
    return {name: d_loss * gradient for name, gradient in zip(ctx.names, ctx.saved_tensors, strict=True)}


ppo_loss = define(
    "ppo_loss(Tensor logprobs, Tensor old_logprobs, Tensor advantages, Tensor values, Tensor old_values, "
    "Tensor returns, Tensor? mask, Tensor? value_mask, float cliprange, float? cliprange_value, float vf_coef, "
    "Tensor? entropy, float entropy_coef, float? dual_clip, float? log_ratio_clamp, Tensor? denominator, "
    "Tensor? value_denominator, Tensor? weight, str? backend) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_fake,
)
define_gradient(ppo_loss, keep=_keep, gradients=_gradients)
