"""Generalised advantage estimation in plain torch: backward over time, all sequences side by side."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def gae_(
    rewards: Tensor, values: Tensor, cu_responses: Tensor, *, gamma: float, lam: float, bootstrap: Tensor | None
) -> Tensor:
    """The specification of `rlhf_kernels.gae_`; arguments are taken as checked."""
    starts = cu_responses[:-1].long()
    lengths = cu_responses.diff()
    next_advantage = torch.zeros_like(starts, dtype=rewards.dtype)  # (B,)
    next_value = next_advantage.clone() if bootstrap is None else bootstrap.clone()
    for t in reversed(range(max(lengths.tolist(), default=0))):
        alive = (t < lengths).nonzero().squeeze(1)
        slots = starts[alive] + t
        value = values[slots]
        delta = rewards[slots] + gamma * next_value[alive] - value
        advantage = delta + gamma * lam * next_advantage[alive]
        rewards[slots] = advantage
        next_advantage[alive] = advantage
        next_value[alive] = value
    return rewards + values
