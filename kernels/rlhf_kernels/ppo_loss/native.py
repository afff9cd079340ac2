"""PPO's loss in C++: one pass over the columns gives every metric and the three gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf_kernels.extension import LEVEL, cannot_run, native

COLUMNS = ("logprobs", "old_logprobs", "advantages", "values", "old_values", "returns", "entropy", "weight")


def supports(args: Mapping[str, Any]) -> str | None:
    """Why the extension cannot take these arguments of `ppo_loss`, or None."""
    reason = cannot_run(args)
    if reason is not None:
        return reason
    columns = {name: args[name] for name in COLUMNS if args[name] is not None}
    if len({column.dtype for column in columns.values()}) > 1:
        got = ", ".join(f"{name} {column.dtype}" for name, column in columns.items())
        return f"got {got}, and it takes columns of one dtype"
    return None


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
    """Metrics (8,) and the gradients of the loss for logprobs (T,), values (T,) and entropy (T,), or (0,) without.

    The metrics, in the order of the fields of PPOLoss and with entropy 0 where none is given, and the gradients have
    the columns' dtype. Arguments are taken as checked and supported.
    """
    d_logprobs, d_values = torch.empty_like(logprobs), torch.empty_like(logprobs)
    d_entropy = logprobs.new_empty(0) if entropy is None else torch.empty_like(entropy)
    metrics = logprobs.new_empty(8)
    run = native.ppo_loss_float64 if logprobs.dtype == torch.float64 else native.ppo_loss_float32
    run(
        logprobs=logprobs.data_ptr(),
        old_logprobs=old_logprobs.data_ptr(),
        advantages=advantages.data_ptr(),
        values=values.data_ptr(),
        old_values=old_values.data_ptr(),
        returns=returns.data_ptr(),
        entropy=_pointer(entropy),
        weight=_pointer(weight),
        mask=_pointer(mask),
        value_mask=_pointer(value_mask),
        slots=logprobs.numel(),
        cliprange=cliprange,
        cliprange_value=_or_infinite(cliprange_value),
        vf_coef=vf_coef,
        entropy_coef=entropy_coef,
        dual_clip=_or_infinite(dual_clip),
        log_ratio_clamp=_or_infinite(log_ratio_clamp),
        denominator=_number(denominator),
        value_denominator=_number(value_denominator),
        metrics=metrics.data_ptr(),
        d_logprobs=d_logprobs.data_ptr(),
        d_values=d_values.data_ptr(),
        d_entropy=d_entropy.data_ptr(),
        level=LEVEL,
        threads=torch.get_num_threads(),
    )
    return metrics, d_logprobs, d_values, d_entropy


def _pointer(column: Tensor | None) -> int:
    return 0 if column is None else column.data_ptr()


def _or_infinite(bound: float | None) -> float:
    return math.inf if bound is None else bound


def _number(denominator: Tensor | None) -> float | None:
    return None if denominator is None else float(denominator)
