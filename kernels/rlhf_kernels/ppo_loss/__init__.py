"""The clipped losses of PPO and the metrics that go with them, over flat columns.

Here: policy loss, value loss, entropy bonus and their reduction. Not here: log-probs, advantages, the optimiser.
"""

from __future__ import annotations

from torch import Tensor

from rlhf_kernels.checks import check_column, check_mask, check_shape
from rlhf_kernels.ppo_loss import reference
from rlhf_kernels.ppo_loss.reference import PPOLoss

__all__ = ["PPOLoss", "ppo_loss"]


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
) -> PPOLoss:
    """PPO's loss: policy_loss + vf_coef * value_loss - entropy_coef * entropy (Schulman et al. 2017).

    All columns are float32 or float64, and so is the arithmetic.

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

    Only `loss` carries gradients, for logprobs, values and entropy; the other six fields are detached. approx_kl is
    0.5 mean((logprobs - old_logprobs)^2), as in TRL. Nothing is mutated. Raises ValueError or TypeError for shapes,
    dtypes or settings that do not fit.
    """
    columns = {
        "old_logprobs": old_logprobs,
        "advantages": advantages,
        "values": values,
        "old_values": old_values,
        "returns": returns,
        "entropy": entropy,
        "weight": weight,
    }
    check_column("logprobs", logprobs, logprobs.numel())
    for name, column in columns.items():
        if column is not None:
            check_column(name, column, logprobs.numel())
    check_mask("mask", mask, tuple(logprobs.shape))
    check_mask("value_mask", value_mask, tuple(logprobs.shape))
    _check_settings(cliprange, cliprange_value, dual_clip, log_ratio_clamp)
    _check_denominator("denominator", denominator)
    _check_denominator("value_denominator", value_denominator)
    if entropy is None and entropy_coef != 0:
        raise ValueError(f"entropy_coef is {entropy_coef} but entropy is None: pass the entropy of each slot")
    return reference.ppo_loss(
        logprobs,
        old_logprobs,
        advantages,
        values,
        old_values,
        returns,
        mask=mask,
        value_mask=value_mask,
        cliprange=cliprange,
        cliprange_value=cliprange_value,
        vf_coef=vf_coef,
        entropy=entropy,
        entropy_coef=entropy_coef,
        dual_clip=dual_clip,
        log_ratio_clamp=log_ratio_clamp,
        denominator=denominator,
        value_denominator=value_denominator,
        weight=weight,
    )


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


def _check_denominator(name: str, denominator: float | Tensor | None) -> None:
    if isinstance(denominator, Tensor):
        check_shape(name, denominator, ())
    elif denominator is not None and not denominator > 0:
        raise ValueError(f"{name} is {denominator}, expected the number of valid slots of the minibatch, above 0")
