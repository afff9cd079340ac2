"""PPO's loss in C++: one pass over the columns gives every metric and the three gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlhf_kernels import extension
from rlhf_kernels.extension import address, column_refusal, native
from rlhf_kernels.ppo_loss.reference import Arguments

COLUMNS = ("logprobs", "old_logprobs", "advantages", "values", "old_values", "returns", "entropy", "weight")


def refusal(a: Arguments) -> str | None:
    """Why the extension cannot take these arguments, or None."""
    reason = column_refusal(a)
    if reason is not None:
        return reason
    columns = {name: getattr(a, name) for name in COLUMNS if getattr(a, name) is not None}
    if len({column.dtype for column in columns.values()}) > 1:
        got = ", ".join(f"{name} {column.dtype}" for name, column in columns.items())
        return f"got {got}, and it takes columns of one dtype"
    return None


def ppo_loss(a: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As the reference; arguments are taken as checked and supported."""
    d_logprobs, d_values = torch.empty_like(a.logprobs), torch.empty_like(a.logprobs)
    d_entropy = a.logprobs.new_empty(0) if a.entropy is None else torch.empty_like(a.entropy)
    metrics = a.logprobs.new_empty(8)
    run = native.ppo_loss_float64 if a.logprobs.dtype == torch.float64 else native.ppo_loss_float32
    run(
        **{name: address(getattr(a, name)) for name in (*COLUMNS, "mask", "value_mask")},
        slots=a.logprobs.numel(),
        cliprange=a.cliprange,
        cliprange_value=_or_infinite(a.cliprange_value),
        vf_coef=a.vf_coef,
        entropy_coef=a.entropy_coef,
        dual_clip=_or_infinite(a.dual_clip),
        log_ratio_clamp=_or_infinite(a.log_ratio_clamp),
        denominator=_number(a.denominator),
        value_denominator=_number(a.value_denominator),
        metrics=metrics.data_ptr(),
        d_logprobs=d_logprobs.data_ptr(),
        d_values=d_values.data_ptr(),
        d_entropy=d_entropy.data_ptr(),
        level=extension.LEVEL,
        threads=torch.get_num_threads(),
    )
    return metrics, d_logprobs, d_values, d_entropy


def _or_infinite(bound: float | None) -> float:
    return math.inf if bound is None else bound


def _number(denominator: Tensor | None) -> float | None:
    return None if denominator is None else float(denominator)
