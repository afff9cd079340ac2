"""PPO's loss on a GPU in two launches: every gradient with a block's sums, then the sum over blocks.

Sums are float32 within a block of slots and float64 over the blocks, in a fixed order: equal inputs give equal results.
Nothing waits for the device; a denominator that is not given is counted there, which costs small launches of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf_kernels.triton_support import cannot_run, columns_not_float32


def supports(args: Mapping[str, Any]) -> str | None:
    """Why Triton cannot take these arguments of `ppo_loss`, or None."""
    columns = ("logprobs", "old_logprobs", "advantages", "values", "old_values", "returns", "entropy", "weight")
    return cannot_run(args) or columns_not_float32(args, *columns)


def ppo_loss(
    *,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor | None,
    value_mask: Tensor | None,
    cliprange: float,
    cliprange_value: float | None,
    vf_coef: float,
    entropy: Tensor | None,
    entropy_coef: float,
    dual_clip: float | None,
    log_ratio_clamp: float | None,
    denominator: Tensor | None,
    value_denominator: Tensor | None,
    weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Metrics (8,), and the gradients of the loss for logprobs, values and entropy ((0,) without entropy).

    The metrics are loss, policy_loss, value_loss, entropy (0 without), clipfrac, value_clipfrac, approx_kl and
    ratio_mean, as in the reference; arguments are taken as checked and supported.
    """
    from rlhf_kernels.ppo_loss import triton_kernels as kernels

    size = logprobs.numel()
    mask = torch.ones_like(logprobs, dtype=torch.bool) if mask is None else mask.contiguous()
    value_mask = mask if value_mask is None else value_mask.contiguous()
    denominators = {
        "denominator": _denominator(denominator, mask),
        "value_denominator": _denominator(value_denominator, value_mask),
    }
    blocks = max(1, -(-size // kernels.BLOCK))
    sums = logprobs.new_empty(blocks, kernels.SUMS)
    metrics, d_logprobs, d_values = (logprobs.new_empty(n) for n in (8, size, size))
    d_entropy = logprobs.new_empty(0 if entropy is None else size)
    columns = (logprobs, old_logprobs, advantages, values, old_values, returns)
    kernels.loss(entropy=entropy is not None, weight=weight is not None).launch(
        (blocks,),
        **{name: column.contiguous() for name, column in zip(kernels.COLUMNS, columns, strict=True)},
        mask=mask,
        value_mask=value_mask,
        entropy=None if entropy is None else entropy.contiguous(),
        weight=None if weight is None else weight.contiguous(),
        **denominators,
        d_logprobs=d_logprobs,
        d_values=d_values,
        d_entropy=None if entropy is None else d_entropy,
        sums=sums,
        size=size,
        low=1 - cliprange,
        high=1 + cliprange,
        cliprange_value=_limit(cliprange_value),
        dual_clip=_limit(dual_clip),
        log_ratio_clamp=_limit(log_ratio_clamp),
        vf_coef=vf_coef,
        entropy_coef=entropy_coef,
    )
    kernels.metrics(entropy=entropy is not None).launch(
        (1,),
        sums=sums,
        **denominators,
        metrics=metrics,
        blocks=blocks,
        vf_coef=vf_coef,
        entropy_coef=entropy_coef,
    )
    return metrics, d_logprobs, d_values, d_entropy


def _denominator(given: Tensor | None, mask: Tensor) -> Tensor:
    """() float32 on the device: the number of True slots, at least 1, unless it is given."""
    return (mask.sum().clamp(min=1) if given is None else given).to(torch.float32)


def _limit(given: float | None) -> float:
    return math.inf if given is None else given
