"""The clipped losses of PPO and the metrics that go with them, over flat columns.

Here: policy loss, value loss, entropy bonus and their reduction, and `linear_ppo_loss`, which takes hidden states. Not
here: log-probs by themselves, advantages, the optimiser.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_kernels.checks import check_column, check_mask, check_same_dtype, check_shape
from rlhf_kernels.logprobs import IGNORED, linear_logprobs
from rlhf_kernels.op import Backend, Gradient, Op
from rlhf_kernels.ppo_loss import native, reference
from rlhf_kernels.ppo_loss.reference import Arguments
from rlhf_kernels.triton_support import in_triton

__all__ = ["PPOLoss", "linear_ppo_loss", "ppo_loss"]

COLUMNS = native.COLUMNS


class PPOLoss(NamedTuple):
    """Loss and metrics of one micro-batch: 0-dim tensors; all but `loss` are detached."""

    loss: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    entropy: Tensor | None  # None where no entropy was given
    clipfrac: Tensor  # share of slots whose policy loss is the clipped one
    value_clipfrac: Tensor  # share of slots whose value loss is the clipped one
    approx_kl: Tensor  # nats
    ratio_mean: Tensor


def ppo_loss(
    logprobs: Tensor,  # (T,)
    old_logprobs: Tensor,  # (T,)
    advantages: Tensor,  # (T,)
    values: Tensor,  # (T,)
    old_values: Tensor,  # (T,)
    returns: Tensor,  # (T,)
    *,
    mask: Tensor | None = None,  # (T,)
    value_mask: Tensor | None = None,  # (T,)
    cliprange: float,
    cliprange_value: float | None,
    vf_coef: float,
    entropy: Tensor | None = None,  # (T,)
    entropy_coef: float = 0.0,
    dual_clip: float | None = None,
    log_ratio_clamp: float | None = None,
    denominator: float | Tensor | None = None,
    value_denominator: float | Tensor | None = None,
    weight: Tensor | None = None,  # (T,)
    backend: str | None = None,
) -> PPOLoss:
    """PPO's loss: policy_loss + vf_coef * value_loss - entropy_coef * entropy (Schulman et al. 2017).

    All columns are float32, or all are float64, and so is the arithmetic.

    Per slot, with rho = exp(logprobs - old_logprobs):
      policy  max(-A rho, -A clip(rho, 1 - cliprange, 1 + cliprange)); for A < 0 at most -A dual_clip (Ye et al. 2020)
      value   0.5 max((v - R)^2, (clip(v, v_old - c, v_old + c) - R)^2), c = cliprange_value; None clips nothing
    `log_ratio_clamp` bounds |logprobs - old_logprobs| before the exponential. `weight` multiplies the policy loss of
    a slot.

    Every result is a sum over the slots of its bool mask divided by its denominator, so that results for the
    micro-batches of a minibatch, each given the minibatch's denominators, add up to those of the minibatch. `mask`
    (default: all slots) and `denominator` serve policy loss, entropy and their metrics; `value_mask` (default:
    `mask`) and `value_denominator` serve the value loss and its clip fraction. A denominator left None is the number
    of True slots here. Slots outside a mask may hold anything, NaN included, and get gradient 0.

    Only `loss` carries gradients, once differentiable, for logprobs, values and, where `entropy_coef` is not 0,
    entropy; they are computed in the same pass. The other fields are detached. approx_kl is
    0.5 mean((logprobs - old_logprobs)^2), as in TRL. Nothing is mutated.

    `backend` is "native" (C++, contiguous CPU columns), "triton" (CUDA) or "reference" (torch); None takes
    RLHF_FAST_BACKEND from the environment, else the first that can run. Raises ValueError or TypeError for shapes,
    dtypes or settings that do not fit, and for a chosen backend that cannot run.
    """
    a = Arguments(
        logprobs=logprobs, old_logprobs=_constant(old_logprobs), advantages=_constant(advantages),
        values=values, old_values=_constant(old_values), returns=_constant(returns), mask=mask, value_mask=value_mask,
        cliprange=cliprange, cliprange_value=cliprange_value, vf_coef=vf_coef, entropy=entropy,
        entropy_coef=entropy_coef, dual_clip=dual_clip, log_ratio_clamp=log_ratio_clamp,
        denominator=_denominator("denominator", denominator, logprobs),
        value_denominator=_denominator("value_denominator", value_denominator, logprobs),
        weight=None if weight is None else _constant(weight),
    )  # fmt: skip
    _check_columns(a)
    _check_settings(a)
    metrics = PPO_LOSS(a, backend)[0]
    details = metrics.detach()
    return PPOLoss(metrics[0], details[1], details[2], None if entropy is None else details[3], *details[4:].unbind())


def linear_ppo_loss(
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    labels: Tensor,  # (N,)
    old_logprobs: Tensor,  # (N,)
    advantages: Tensor,  # (N,)
    values: Tensor,  # (N,)
    old_values: Tensor,  # (N,)
    returns: Tensor,  # (N,)
    *,
    bias: Tensor | None = None,  # (V,)
    temperature: float = 1.0,
    softcap: float | None = None,
    value_mask: Tensor | None = None,  # (N,)
    cliprange: float,
    cliprange_value: float | None,
    vf_coef: float,
    entropy: bool = False,
    entropy_coef: float = 0.0,
    dual_clip: float | None = None,
    log_ratio_clamp: float | None = None,
    denominator: float | Tensor | None = None,
    value_denominator: float | Tensor | None = None,
    loss_weight: Tensor | None = None,  # (N,)
    backend: str | None = None,
) -> PPOLoss:
    """`ppo_loss` of the log-probs of `labels` under the hidden states, over the rows whose label is not -100.

    `entropy` asks for the mean entropy among the results; it has a part in the loss, and costs a third product in
    the gradient, only where `entropy_coef` is not 0. `loss_weight` is the `weight` of `ppo_loss`. The loss is once
    differentiable in hidden, values, weight and bias. Everything else, errors and backends included, is as
    `linear_logprobs` and `ppo_loss` say.
    """
    scored = linear_logprobs(
        hidden, weight, labels, bias=bias, temperature=temperature, softcap=softcap,
        entropy=entropy or entropy_coef != 0, entropy_gradient=entropy_coef != 0, backend=backend,
    )  # fmt: skip
    return ppo_loss(
        scored.logprobs, old_logprobs, advantages, values, old_values, returns,
        mask=labels != IGNORED, value_mask=value_mask, cliprange=cliprange, cliprange_value=cliprange_value,
        vf_coef=vf_coef, entropy=scored.entropy, entropy_coef=entropy_coef, dual_clip=dual_clip,
        log_ratio_clamp=log_ratio_clamp, denominator=denominator, value_denominator=value_denominator,
        weight=loss_weight, backend=backend,
    )  # fmt: skip


def _check_columns(a: Arguments) -> None:
    slots = a.logprobs.numel()
    columns = {name: getattr(a, name) for name in COLUMNS if getattr(a, name) is not None}
    for name, column in columns.items():
        check_column(name, column, slots)
    check_same_dtype(**columns)
    check_mask("mask", a.mask, (slots,))
    check_mask("value_mask", a.value_mask, (slots,))


def _check_settings(a: Arguments) -> None:
    if not a.cliprange > 0:
        raise ValueError(f"cliprange is {a.cliprange}, expected a number above 0, such as 0.2")
    if a.cliprange_value is not None and not a.cliprange_value > 0:
        raise ValueError(
            f"cliprange_value is {a.cliprange_value}, expected a number above 0, or None to clip no values"
        )
    if a.dual_clip is not None and not a.dual_clip > 1:
        raise ValueError(
            f"dual_clip is {a.dual_clip}, expected a number above 1, such as 3, or None for the plain loss"
        )
    if a.log_ratio_clamp is not None and not a.log_ratio_clamp > 0:
        raise ValueError(f"log_ratio_clamp is {a.log_ratio_clamp}, expected a number above 0, such as 20, or None")
    if a.entropy is None and a.entropy_coef != 0:
        raise ValueError(f"entropy_coef is {a.entropy_coef} but entropy is None: pass the entropy of each slot")


def _constant(column: Tensor) -> Tensor:
    return column.detach() if column.requires_grad else column


def _denominator(name: str, denominator: float | Tensor | None, like: Tensor) -> Tensor | None:
    """As a 0-dim tensor beside the columns, in their dtype."""
    if isinstance(denominator, Tensor):
        check_shape(name, denominator, ())
        return denominator.detach().to(like.dtype)
    if denominator is None:
        return None
    if not denominator > 0:
        raise ValueError(f"{name} is {denominator}, expected the number of valid slots of the minibatch, above 0")
    return torch.full((), float(denominator), dtype=like.dtype, device=like.device)


def _fake(a: Arguments) -> tuple[Tensor, ...]:
    slots = a.logprobs.shape[0]
    return tuple(a.logprobs.new_empty(size) for size in (8, slots, slots, 0 if a.entropy is None else slots))


def _keep(ctx: Any, a: Arguments, results: tuple[Tensor, ...]) -> None:
    has_entropy = a.entropy is not None and a.entropy_coef != 0  # else no gradient is computed for zeros
    ctx.names = ("logprobs", "values", "entropy") if has_entropy else ("logprobs", "values")
    ctx.save_for_backward(*results[1 : 1 + len(ctx.names)])


def _gradients(ctx: Any, d_metrics: Tensor | None, *_: Tensor | None) -> Mapping[str, Tensor | None]:
    if d_metrics is None:
        return {}
    d_loss = d_metrics[0]
    return {name: d_loss * gradient for name, gradient in zip(ctx.names, ctx.saved_tensors, strict=True)}


PPO_LOSS = Op(
    "ppo_loss",
    Arguments,
    "(Tensor, Tensor, Tensor, Tensor)",
    fake=_fake,
    gradient=Gradient(_keep, _gradients),
    backends={
        "native": Backend(native.ppo_loss, native.refusal),
        "triton": in_triton("rlhf_kernels.ppo_loss.triton", "ppo_loss"),
        "reference": Backend(reference.ppo_loss),
    },
)
