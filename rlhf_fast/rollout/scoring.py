"""Columns that need a forward: log-probs of policy and reference, the KL between them, and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf_fast.model.packed import Packed, cut_by_tokens
from rlhf_fast.model.roles import Critic, Policy
from rlhf_fast.rollout.arena import Rollout
from rlhf_kernels import policy_reference_logprobs

KLEstimator = Literal["k1", "k2", "k3", "exact"]


@torch.no_grad()
def score_logprobs(
    rollout: Rollout,
    policy: Policy,
    reference: Policy,
    *,
    temperature: float,
    kl_estimator: KLEstimator,
    max_tokens: int,
) -> None:
    """Write columns `logprobs`, `ref_logprobs` and `kl`, each (T,) f32; an eos+1 slot has 0 in all three."""
    logprobs, ref_logprobs, kl = (torch.zeros(rollout.labels.shape, device=rollout.tokens.device) for _ in range(3))
    (weight, bias), ref_weight, widen = policy.model.lm_head, None, 0
    if reference.model is not policy.model:
        ref_weight, ref_bias = reference.model.lm_head
        if bias is not None and ref_bias is not None:  # each its own: a column of the weight that reads a hidden 1
            weight, ref_weight = torch.cat([weight, bias[:, None]], 1), torch.cat([ref_weight, ref_bias[:, None]], 1)
            bias, widen = None, 1
    for packed, slots in micro_batches(rollout, list(range(len(rollout))), max_tokens):
        hidden, ref_hidden = (pad(role.hidden(packed), (0, widen), value=1.0) for role in (policy, reference))
        out = policy_reference_logprobs(
            hidden, ref_hidden, weight, packed.labels, bias=bias, ref_weight=ref_weight,
            temperature=temperature, softcap=policy.model.softcap, exact_kl=kl_estimator == "exact",
        )  # fmt: skip
        logprobs[slots], ref_logprobs[slots] = out.logprobs, out.ref_logprobs
        kl[slots] = out.kl if out.kl is not None else ESTIMATORS[kl_estimator](out.logprobs, out.ref_logprobs)
    rollout.columns |= {"logprobs": logprobs, "ref_logprobs": ref_logprobs, "kl": kl}


@torch.no_grad()
def score_values(rollout: Rollout, critic: Critic, *, max_tokens: int) -> None:
    """Write column `values` (T,) f32."""
    values = torch.zeros(rollout.labels.shape, device=rollout.tokens.device)
    for packed, slots in micro_batches(rollout, list(range(len(rollout))), max_tokens):
        values[slots] = critic.values(packed)
    rollout.columns["values"] = values


def micro_batches(rollout: Rollout, sequences: list[int], max_tokens: int) -> Iterator[tuple[Packed, Tensor]]:
    """The given sequences in packed pieces of at most `max_tokens` tokens, each with its slot indices."""
    lengths = rollout.lengths
    for group in cut_by_tokens([lengths[b] for b in sequences], max_tokens):
        yield rollout.select([sequences[i] for i in group])


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    return (logprobs - ref_logprobs).square() / 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    return torch.expm1(ref_logprobs - logprobs) - (ref_logprobs - logprobs)


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
"""Per-token KL estimators of (Schulman 2020, "Approximating KL divergence"); `exact` needs the whole vocabulary."""
