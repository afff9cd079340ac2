"""PPO's loss in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    *,
    mask: Tensor | None,
    value_mask: Tensor | None,
    cliprange: float,
    cliprange_value: float | None,
    vf_coef: float,
    entropy: Tensor | None,
    entropy_coef: float,
    dual_clip: float | None,
    log_ratio_clamp: float | None,
    denominator: float | Tensor | None,
    value_denominator: float | Tensor | None,
    weight: Tensor | None,
) -> PPOLoss:
    """The specification of `rlhf_kernels.ppo_loss`; arguments are taken as checked."""
    if mask is None:
        mask = torch.ones_like(logprobs, dtype=torch.bool)
    if value_mask is None:
        value_mask = mask
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)  # so that nothing outside the mask reaches a gradient
    ratio = _ratio(log_ratio, log_ratio_clamp)
    policy, clipped = _policy_loss(ratio, advantages, cliprange, dual_clip)
    if weight is not None:
        policy = policy * weight
    value, value_clipped = _value_loss(
        torch.where(value_mask, values, 0.0), old_values, returns, cliprange_value=cliprange_value
    )

    policy_loss = _mean(policy, mask, denominator)
    value_loss = _mean(value, value_mask, value_denominator)
    loss = policy_loss + vf_coef * value_loss
    mean_entropy = None
    if entropy is not None:
        mean_entropy = _mean(entropy, mask, denominator)
        loss = loss - entropy_coef * mean_entropy
    return PPOLoss(
        loss,
        policy_loss.detach(),
        value_loss.detach(),
        None if mean_entropy is None else mean_entropy.detach(),
        clipfrac=_mean(clipped.to(loss.dtype), mask, denominator),
        value_clipfrac=_mean(value_clipped.to(loss.dtype), value_mask, value_denominator),
        approx_kl=_mean(0.5 * log_ratio.detach().square(), mask, denominator),
        ratio_mean=_mean(ratio.detach(), mask, denominator),
    )


def _ratio(log_ratio: Tensor, clamp: float | None) -> Tensor:
    return torch.exp(log_ratio if clamp is None else log_ratio.clamp(-clamp, clamp))


def _policy_loss(ratio: Tensor, advantages: Tensor, cliprange: float, dual_clip: float | None) -> tuple[Tensor, Tensor]:
    """Loss of each slot, and whether the clipped ratio is the one that counts."""
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    loss = torch.maximum(unclipped, clipped)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)
    return loss, clipped.detach() > unclipped.detach()


def _value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, cliprange_value: float | None
) -> tuple[Tensor, Tensor]:
    """Loss of each slot, and whether the clipped value is the one that counts."""
    unclipped = (values - returns).square()
    if cliprange_value is None:
        return 0.5 * unclipped, torch.zeros_like(unclipped, dtype=torch.bool)
    near_old = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)
    clipped = (near_old - returns).square()
    return 0.5 * torch.maximum(unclipped, clipped), clipped.detach() > unclipped.detach()


def _mean(x: Tensor, mask: Tensor, denominator: float | Tensor | None) -> Tensor:
    """Sum over the True slots / denominator; without True slots and denominator, 0."""
    return torch.where(mask, x, 0.0).sum() / (mask.sum().clamp(min=1) if denominator is None else denominator)
