"""The operations as people write them in torch, with the whole logits in memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

HAS_CROSS_ENTROPY = hasattr(F, "linear_cross_entropy")  # of torch 2.13 and later


def logprobs(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.linear(hidden, weight).float().log_softmax(1).gather(1, labels[:, None]).squeeze(1)


def cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.linear_cross_entropy(hidden, weight, labels, reduction="none")


def policy_reference(hidden: Tensor, ref_hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    policy, ref = (F.linear(x, weight).float().log_softmax(1) for x in (hidden, ref_hidden))
    kl = (policy.exp() * (policy - ref)).sum(1)
    return policy.gather(1, labels[:, None]), ref.gather(1, labels[:, None]), kl


def ppo(logprobs: Tensor, old: Tensor, advantages: Tensor, values: Tensor, old_values: Tensor, returns: Tensor):
    ratio = (logprobs - old).exp()
    policy = torch.max(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2)).mean()
    near = torch.clamp(values, old_values - 0.2, old_values + 0.2)
    value = 0.5 * torch.max((values - returns).square(), (near - returns).square()).mean()
    return policy + 0.1 * value


def ppo_from_hidden(hidden: Tensor, weight: Tensor, labels: Tensor, *columns: Tensor) -> Tensor:
    return ppo(logprobs(hidden, weight, labels), *columns)


def gae_and_whiten(rewards: Tensor, values: Tensor) -> Tensor:
    """(B, T) each: a Python loop over time, as in TRL."""
    last, reversed_advantages = torch.zeros_like(rewards[:, 0]), []
    for t in reversed(range(rewards.shape[1])):
        next_values = values[:, t + 1] if t < rewards.shape[1] - 1 else 0.0
        delta = rewards[:, t] + 0.99 * next_values - values[:, t]
        last = delta + 0.99 * 0.95 * last
        reversed_advantages.append(last)
    advantages = torch.stack(reversed_advantages[::-1], dim=1)
    returns = advantages + values
    return (advantages - advantages.mean()) * torch.rsqrt(advantages.var() + 1e-8) + 0 * returns[0, 0]


def shape_rewards(kl: Tensor, scores: Tensor) -> Tensor:
    """(B, T) and (B,): the score lands on the last slot."""
    rewards = -0.1 * kl
    rewards[torch.arange(len(scores)), -1] += scores
    return rewards
