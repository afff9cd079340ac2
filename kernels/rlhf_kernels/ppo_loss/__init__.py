"""The clipped losses of PPO and the metrics that go with them, over flat columns.

Here: policy loss, value loss, entropy bonus and their reduction. Not here: log-probs, advantages, the optimiser.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_kernels.checks import check_column, check_mask, check_same_dtype, check_shape
from rlhf_kernels.ppo_loss import op

__all__ = ["PPOLoss", "ppo_loss"]


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
    columns = {
        "logprobs": logprobs,
        "old_logprobs": old_logprobs,
        "advantages": advantages,
        "values": values,
        "old_values": old_values,
        "returns": returns,
        "entropy": entropy,
        "weight": weight,
    }
    _check_columns({name: column for name, column in columns.items() if column is not None}, mask, value_mask)
    _check_settings(cliprange, cliprange_value, dual_clip, log_ratio_clamp)
    if entropy is None and entropy_coef != 0:
        raise ValueError(f"entropy_coef is {entropy_coef} but entropy is None: pass the entropy of each slot")
    metrics = op.ppo_loss(
        logprobs,
        _constant(old_logprobs),
        _constant(advantages),
        values,
        _constant(old_values),
        _constant(returns),
        mask,
        value_mask,
        cliprange,
        cliprange_value,
        vf_coef,
        entropy,
        entropy_coef,
        dual_clip,
        log_ratio_clamp,
        _denominator("denominator", denominator, logprobs),
        _denominator("value_denominator", value_denominator, logprobs),
        None if weight is None else _constant(weight),
        backend,
    )[0]
    details = metrics.detach()
    return PPOLoss(metrics[0], details[1], details[2], None if entropy is None else details[3], *details[4:].unbind())


def _check_columns(columns: dict[str, Tensor], mask: Tensor | None, value_mask: Tensor | None) -> None:
    slots = columns["logprobs"].numel()
    for name, column in columns.items():
        check_column(name, column, slots)
    check_same_dtype(**columns)
    check_mask("mask", mask, (slots,))
    check_mask("value_mask", value_mask, (slots,))


def _check_settings(
    cliprange: float, cliprange_value: float | None, dual_clip: float | None, log_ratio_clamp: float | None
) -> None:
    if not cliprange > 0:
        raise ValueError(f"cliprange is {cliprange}, expected a number above 0, such as 0.2")
    if cliprange_value is not None and not cliprange_value > 0:
        raise ValueError(f"cliprange_value is {cliprange_value}, expected a number above 0, or None to clip no values")
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip is {dual_clip}, expected a number above 1, such as 3, or None for the plain loss")
    if log_ratio_clamp is not None and not log_ratio_clamp > 0:
        raise ValueError(f"log_ratio_clamp is {log_ratio_clamp}, expected a number above 0, such as 20, or None")


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
