"""Inputs for the tests of the native PPO loss, and its exact results from the formulas and torch's autograd."""

from __future__ import annotations

import math

import torch

COLUMNS = ("logprobs", "old_logprobs", "advantages", "values", "old_values", "returns", "entropy", "weight")
DIFFERENTIATED = ("logprobs", "values", "entropy")
PLAIN = {"cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 0.1, "entropy_coef": 0.0}
PLAIN |= {"dual_clip": None, "log_ratio_clamp": None, "denominator": None, "value_denominator": None}


def columns(slots, dtype, *, seed=0):
    """Random columns with many ties: equal log-probs, no advantage, a value as of old; NaN outside the masks."""
    g = torch.Generator().manual_seed(seed)
    c = {name: torch.randn(slots, generator=g, dtype=torch.float64).to(dtype) for name in COLUMNS}
    c["logprobs"] = c["old_logprobs"] + 0.4 * c["logprobs"]
    c["logprobs"][::3] = c["old_logprobs"][::3]
    c["advantages"][::4] = 0.0
    c["values"][::5] = c["old_values"][::5]
    c["mask"], c["value_mask"] = (torch.rand(slots, generator=g) < share for share in (0.7, 0.8))
    for name in COLUMNS:
        c[name][~c["value_mask" if name in ("values", "old_values", "returns") else "mask"]] = math.nan
    return c


def autograd(c, dtype, s):
    """Metrics and gradients from the formulas and torch's autograd, over the slots of the masks alone."""
    mask = c["mask"] if c["mask"] is not None else torch.ones(len(c["logprobs"]), dtype=torch.bool)
    value_mask = mask if c["value_mask"] is None else c["value_mask"]
    c = {name: None if c[name] is None else c[name].to(dtype, copy=True) for name in COLUMNS}
    leaves = [c[name].requires_grad_() for name in DIFFERENTIATED if c[name] is not None]
    log_ratio, advantages = (c["logprobs"] - c["old_logprobs"])[mask], c["advantages"][mask]
    clamp, weight = s["log_ratio_clamp"], 1.0 if c["weight"] is None else c["weight"][mask]
    ratio = torch.exp(log_ratio if clamp is None else log_ratio.clamp(-clamp, clamp))
    first, second = -advantages * ratio, -advantages * ratio.clamp(1 - s["cliprange"], 1 + s["cliprange"])
    policy = torch.maximum(first, second)
    if s["dual_clip"] is not None:
        policy = torch.where(advantages < 0, torch.minimum(policy, -advantages * s["dual_clip"]), policy)
    v, old, target = (c[name][value_mask] for name in ("values", "old_values", "returns"))
    value = near_value = (v - target).square()
    if s["cliprange_value"] is not None:
        near = torch.clamp(v, old - s["cliprange_value"], old + s["cliprange_value"])
        near_value = (near - target).square()
    n = max(int(mask.sum()), 1) if s["denominator"] is None else s["denominator"]
    m = max(int(value_mask.sum()), 1) if s["value_denominator"] is None else s["value_denominator"]
    policy_loss, value_loss = (policy * weight).sum() / n, 0.5 * torch.maximum(value, near_value).sum() / m
    entropy = torch.zeros(0, dtype=dtype).sum() if c["entropy"] is None else c["entropy"][mask].sum() / n
    loss = policy_loss + s["vf_coef"] * value_loss - s["entropy_coef"] * entropy
    shares = (second > first).to(dtype).sum() / n, (near_value > value).to(dtype).sum() / m
    metrics = [loss, policy_loss, value_loss, entropy, *shares, 0.5 * log_ratio.square().sum() / n, ratio.sum() / n]
    gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
    return [torch.stack([x.detach().to(dtype) for x in metrics]), *gradients]


def slot(dtype=torch.float64, **given):
    """Sixteen equal slots at ratio 1, advantage 0 and a perfect value, but for what is given."""
    c = {name: torch.full((16,), given.get(name, 0.0), dtype=dtype) for name in COLUMNS[:6]}
    return c | dict.fromkeys(("mask", "value_mask", "entropy", "weight"))
