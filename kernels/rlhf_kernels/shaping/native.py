"""Reward shaping in C++, on as many threads as torch uses."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kernels.extension import cannot_run, native

supports = cannot_run


def shape_rewards_(
    *,
    rewards: Tensor,
    kl: Tensor,
    scores: Tensor,
    score_index: Tensor,
    cu_responses: Tensor,  # plays no part: score_index counts over all slots
    kl_coef: float,
) -> None:
    """As the reference, to the last bit; arguments are taken as checked and supported."""
    run = native.shape_rewards_float64 if rewards.dtype == torch.float64 else native.shape_rewards_float32
    run(
        rewards.data_ptr(),
        kl.data_ptr(),
        rewards.numel(),
        scores.data_ptr(),
        score_index.data_ptr(),
        scores.numel(),
        kl_coef,
        torch.get_num_threads(),
    )
