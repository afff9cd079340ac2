"""The metrics of an iteration, masked and honest, under TRL's names where it has one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_fast.rewards.weighted import Scores
from rlhf_fast.rollout.diversity import distinct_n, repetition
from rlhf_fast.rollout.rollout import Rollout
from rlhf_fast.runtime.distributed import total
from rlhf_kernels import PPOLoss


def summarise(rollout: Rollout, scores: Scores, updates: list[dict[str, float]], kl_coef: float) -> dict[str, float]:
    """Means over responses of the rollout's columns, means over optimiser steps of the update's metrics."""
    mask = rollout.action_mask
    kl = per_response(rollout.kl, rollout)
    responses = rollout.responses()
    non_score = -kl_coef * kl
    out: dict[str, Any] = {
        "objective/kl": kl.mean(),
        "objective/entropy": per_response(-rollout.logprobs * mask, rollout).mean(),
        "objective/non_score_reward": non_score.mean(),
        "objective/rlhf_reward": (non_score + scores.total).mean(),
        "objective/scores": scores.total.mean(),
        "objective/kl_coef": kl_coef,
        "val/explained_variance": explained_variance(rollout.values, rollout.returns),
        "val/num_eos_tokens": rollout.finished.sum(),
        "rollout/truncated_fraction": rollout.truncated.float().mean(),
        "rollout/response_length": sum(map(len, responses)) / len(responses),
        "rollout/distinct_2": distinct_n(responses, 2),
        "rollout/repetition": repetition(responses),
    }
    if rollout.sampled_logprobs is not None:
        out["rollout/logprob_mismatch"] = (rollout.sampled_logprobs - rollout.logprobs)[mask].abs().mean()
    out |= {f"reward/{name}": values.nanmean() for name, values in scores.parts.items()}
    names = {
        "policy/approxkl_avg": "approx_kl", "policy/clipfrac_avg": "clipfrac", "policy/entropy_avg": "entropy",
        "loss/policy_avg": "policy_loss", "loss/value_avg": "value_loss", "val/clipfrac_avg": "value_clipfrac",
        "val/ratio": "ratio_mean", "grad_norm": "grad_norm",
    }  # fmt: skip
    out |= {name: sum(step[key] for step in updates) / len(updates) for name, key in names.items()}
    return {name: float(value) for name, value in out.items()}


def read_back(losses: list[PPOLoss], beside: Sequence[Tensor] = ()) -> tuple[dict[str, float], list[float]]:
    """The metrics of a minibatch, and the numbers `beside` them: one reading of the device.

    Micro-batch results share the minibatch's denominators, so their sum over all processes is its mean.
    """
    names = PPOLoss._fields
    tensors = [*(getattr(loss, name) for loss in losses for name in names), *beside]
    values = torch.stack(tensors).tolist() if tensors else []
    parts = len(losses) * len(names)
    sums = (sum(values[column : parts : len(names)]) for column in range(len(names)))
    return dict(zip(names, total(*sums), strict=True)), values[parts:]


def per_response(column: Tensor, rollout: Rollout) -> Tensor:
    """(B,): the sum of a (T,) column over the slots of each response."""
    cu = rollout.cu_responses.long()
    cumulative = torch.cat([column.new_zeros(1, dtype=torch.float64), column.double().cumsum(0)])
    return (cumulative[cu[1:]] - cumulative[cu[:-1]]).float()


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns); 0 is a critic as good as a constant, below 0 a worse one."""
    spread = float(returns.var())
    return float("nan") if not spread > 0 else 1 - float((returns - values).var()) / spread
