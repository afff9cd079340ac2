"""Reward shaping on a GPU: one launch, one program per sequence, nothing waits for the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rlhf_kernels.triton_support import cannot_run, columns_not_float32, contiguous_


def supports(args: Mapping[str, Any]) -> str | None:
    """Why Triton cannot take these arguments of `shape_rewards_`, or None."""
    return cannot_run(args) or columns_not_float32(args, "rewards", "kl", "scores")


def shape_rewards_(
    *, rewards: Tensor, kl: Tensor, scores: Tensor, score_index: Tensor, cu_responses: Tensor, kl_coef: float
) -> None:
    """As the reference; arguments are taken as checked and supported. `cu_responses` says who owns which slot."""
    from rlhf_kernels.shaping import triton_kernels as kernels

    if rewards.numel() == 0:
        return
    with contiguous_(rewards) as work:
        kernels.SHAPE_REWARDS.launch(
            (scores.numel(),),
            rewards=work,
            kl=kl.contiguous(),
            scores=scores.contiguous(),
            score_index=score_index.contiguous(),
            cu_responses=cu_responses.contiguous(),
            kl_coef=kl_coef,
        )
