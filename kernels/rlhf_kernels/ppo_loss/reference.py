"""PPO's loss and its gradients in plain torch, and what the operation takes and gives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Arguments(NamedTuple):
    """Results: the metrics (8,), in the order of the fields of `PPOLoss`, with entropy 0 where none is given, and the
    gradients of the loss by logprobs (T,), values (T,) and entropy (T,), or (0,) without; all in the columns' dtype.
    """

    logprobs: Tensor  # (T,) as all columns
    old_logprobs: Tensor
    advantages: Tensor
    values: Tensor
    old_values: Tensor
    returns: Tensor
    mask: Tensor | None
    value_mask: Tensor | None
    cliprange: float
    cliprange_value: float | None
    vf_coef: float
    entropy: Tensor | None
    entropy_coef: float
    dual_clip: float | None
    log_ratio_clamp: float | None
    denominator: Tensor | None  # ()
    value_denominator: Tensor | None  # ()
    weight: Tensor | None


def ppo_loss(a: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The specification of `rlhf_kernels.ppo_loss`.

    Where two sides of a maximum tie, each has half of the gradient, as in torch.
    """
    mask = torch.ones_like(a.logprobs, dtype=torch.bool) if a.mask is None else a.mask
    value_mask = mask if a.value_mask is None else a.value_mask
    log_ratio = torch.where(mask, a.logprobs - a.old_logprobs, 0.0)
    ratio, d_ratio = _ratio(log_ratio, a.log_ratio_clamp)
    policy, d_policy, clipped = _policy_loss(ratio, a.advantages, a.cliprange, a.dual_clip)
    if a.weight is not None:
        policy, d_policy = policy * a.weight, d_policy * a.weight
    value, d_value, value_clipped = _value_loss(a.values, a.old_values, a.returns, a.cliprange_value)

    policy_loss = _mean(policy, mask, a.denominator)
    value_loss = _mean(value, value_mask, a.value_denominator)
    mean_entropy = _mean(torch.zeros_like(a.logprobs) if a.entropy is None else a.entropy, mask, a.denominator)
    metrics = [
        policy_loss + a.vf_coef * value_loss - a.entropy_coef * mean_entropy,
        policy_loss,
        value_loss,
        mean_entropy,
        _mean(clipped.to(ratio.dtype), mask, a.denominator),
        _mean(value_clipped.to(ratio.dtype), value_mask, a.value_denominator),
        _mean(0.5 * log_ratio.square(), mask, a.denominator),
        _mean(ratio, mask, a.denominator),
    ]
    d_logprobs = _share(d_policy * d_ratio, mask, a.denominator)
    d_values = _share(a.vf_coef * d_value, value_mask, a.value_denominator)
    d_entropy = _share(torch.full_like(a.logprobs, -a.entropy_coef), mask, a.denominator)
    return torch.stack(metrics), d_logprobs, d_values, d_entropy[: 0 if a.entropy is None else None]


def _ratio(log_ratio: Tensor, clamp: float | None) -> tuple[Tensor, Tensor]:
    """The ratio of each slot, and its derivative by the log-prob."""
    if clamp is None:
        ratio = torch.exp(log_ratio)
        return ratio, ratio
    ratio = torch.exp(log_ratio.clamp(-clamp, clamp))
    return ratio, ratio * (log_ratio.abs() <= clamp)


def _policy_loss(
    ratio: Tensor, advantages: Tensor, cliprange: float, dual_clip: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each slot, its derivative by the ratio, and whether the clipped ratio is the one that counts."""
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    clips = clipped > unclipped
    loss = torch.maximum(unclipped, clipped)
    derivative = torch.where(clips, 0.0, -advantages)
    if dual_clip is not None:
        most = torch.where(advantages < 0, -advantages * dual_clip, torch.inf)
        derivative = derivative * _counts(most, loss)
        loss = torch.minimum(loss, most)
    return loss, derivative, clips


def _value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, cliprange_value: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each slot, its derivative by the value, and whether the clipped value is the one that counts."""
    error = values - returns
    if cliprange_value is None:
        return 0.5 * error.square(), error, torch.zeros_like(error, dtype=torch.bool)
    low, high = old_values - cliprange_value, old_values + cliprange_value
    near_error = torch.clamp(values, low, high) - returns
    unclipped, clipped = error.square(), near_error.square()
    inside = (low <= values) & (values <= high)
    derivative = error * _counts(unclipped, clipped) + near_error * inside * _counts(clipped, unclipped)
    return 0.5 * torch.maximum(unclipped, clipped), derivative, clipped > unclipped


def _counts(a: Tensor, b: Tensor) -> Tensor:
    """The share of `a` in the gradient of max(a, b): 1 where it is larger, a half where they tie."""
    return 0.5 * ((a > b).to(a.dtype) + (a >= b).to(a.dtype))


def _mean(x: Tensor, mask: Tensor, denominator: Tensor | None) -> Tensor:
    """Sum over the True slots / denominator; without True slots and denominator, 0."""
    return torch.where(mask, x, 0.0).sum() / _count(mask, denominator)


def _share(derivative: Tensor, mask: Tensor, denominator: Tensor | None) -> Tensor:
    """The gradient of such a mean from the derivative of each slot."""
    return torch.where(mask, derivative, 0.0) / _count(mask, denominator).to(derivative.dtype)


def _count(mask: Tensor, denominator: Tensor | None) -> Tensor:
    return mask.sum().clamp(min=1) if denominator is None else denominator
