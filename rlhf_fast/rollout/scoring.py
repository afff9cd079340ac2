"""Columns that need a forward: log-probs of policy and reference, the KL between them, and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf_fast.model.critics import ValueModel
from rlhf_fast.model.packed import Packed, cut_by_tokens
from rlhf_fast.model.roles import Policy
from rlhf_fast.model.sharding import in_step
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.model.work import tell_head
from rlhf_fast.rollout.arena import Rollout
from rlhf_fast.runtime.interrupt import give_way
from rlhf_kernels import policy_reference_logprobs

KLEstimator = Literal["k1", "k2", "k3", "exact"]


@torch.no_grad()
def score_rollout(
    rollout: Rollout,
    policy: Policy,
    reference: Policy,
    critic: ValueModel,
    *,
    temperature: float,
    kl_estimator: KLEstimator,
    max_tokens: int,
) -> None:
    """Write columns `logprobs`, `ref_logprobs`, `kl` and `values`, each (T,) f32, and what the critic reads.

    An eos+1 slot has 0 in the first three.
    """
    logprobs, ref_logprobs, kl, values = (
        torch.zeros(rollout.labels.shape, device=rollout.tokens.device) for _ in range(4)
    )
    (weight, bias), ref_weight, widen = policy.model.lm_head, None, 0
    if reference.model is not policy.model:
        ref_weight, ref_bias = reference.model.lm_head
        if bias is not None and ref_bias is not None:  # each its own: a column of the weight that reads a hidden 1
            weight, ref_weight = torch.cat([weight, bias[:, None]], 1), torch.cat([ref_weight, ref_bias[:, None]], 1)
            bias, widen = None, 1
    for packed, slots, counts in micro_batches(rollout, list(range(len(rollout))), max_tokens, policy.model):
        give_way()
        hidden, ref_hidden = policy.hidden(packed), reference.hidden(packed)
        own_values = critic.values(replace(packed, policy_hidden=hidden, ref_hidden=ref_hidden))
        if not counts:
            continue
        values[slots] = own_values
        if critic.reads_reference:
            if rollout.ref_hidden is None:
                rollout.ref_hidden = ref_hidden.new_zeros(len(rollout.labels), ref_hidden.shape[1])
            rollout.ref_hidden[slots] = ref_hidden
        tell_head(2 * len(slots), weight)
        out = policy_reference_logprobs(
            pad(hidden, (0, widen), value=1.0), pad(ref_hidden, (0, widen), value=1.0), weight, packed.labels,
            bias=bias, ref_weight=ref_weight, temperature=temperature, softcap=policy.model.softcap,
            exact_kl=kl_estimator == "exact",
        )  # fmt: skip
        logprobs[slots], ref_logprobs[slots] = out.logprobs, out.ref_logprobs
        kl[slots] = out.kl if out.kl is not None else ESTIMATORS[kl_estimator](out.logprobs, out.ref_logprobs)
    rollout.columns |= {"logprobs": logprobs, "ref_logprobs": ref_logprobs, "kl": kl, "values": values}


def micro_batches(
    rollout: Rollout, sequences: list[int], max_tokens: int, model: SharedModel
) -> Iterator[tuple[Packed, Tensor, bool]]:
    """The given sequences in packed pieces of at most `max_tokens` tokens, each with its slot indices, and whether it
    counts: where processes divide the layers of `model`, some run pieces more to keep in step."""
    lengths = rollout.lengths
    groups = [[sequences[i] for i in group] for group in cut_by_tokens([lengths[b] for b in sequences], max_tokens)]
    for group, counts in in_step(model, groups, [0]):
        yield *rollout.select(group), counts


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    return (logprobs - ref_logprobs).square() / 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    return torch.expm1(ref_logprobs - logprobs) - (ref_logprobs - logprobs)


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
"""Per-token KL estimators of (Schulman 2020, "Approximating KL divergence"); `exact` needs the whole vocabulary."""
