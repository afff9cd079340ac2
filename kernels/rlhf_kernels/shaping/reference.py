"""Reward shaping in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def shape_rewards_(
    rewards: Tensor, kl: Tensor, scores: Tensor, score_index: Tensor, cu_responses: Tensor, *, kl_coef: float
) -> None:
    """The specification of `rlhf_kernels.shape_rewards_`; arguments are taken as checked."""
    torch.mul(kl, -kl_coef, out=rewards)
    has_slot = score_index >= 0  # not `scores != 0`: a score of 0.0 is a score
    rewards.index_add_(0, score_index[has_slot], scores[has_slot])
