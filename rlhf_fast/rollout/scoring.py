"""Columns that need a forward: log-probs of policy and reference, the KL between them, and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf_fast.model.batches import MicroBatches, by_tokens
from rlhf_fast.model.roles import Policy, ValueModel
from rlhf_fast.model.work import tell_head
from rlhf_fast.rollout.rollout import Rollout
from rlhf_fast.runtime.phases import holds
from rlhf_kernels import policy_reference_logprobs

KLEstimator = Literal["k1", "k2", "k3", "exact"]


@torch.no_grad()
def score_rollout(
    rollout: Rollout,
    policy: Policy,
    reference: Policy,
    critic: ValueModel,
    micro_batches: MicroBatches,
    *,
    temperature: float,
    kl_estimator: KLEstimator,
) -> None:
    """Fill the columns `logprobs`, `ref_logprobs`, `kl` and `values`, and `ref_hidden` where the critic reads it.

    An eos+1 slot keeps its 0 in the first three.
    """
    head, bias, ref_head, widen = _heads(policy, reference)
    if critic.reads_reference:
        rollout.ref_hidden = torch.zeros(
            len(rollout.labels), reference.model.hidden_size, dtype=reference.model.dtype, device=rollout.tokens.device
        )
        holds("buffers", [rollout.ref_hidden])

    def score(sequences: list[int], weight: float) -> None:
        packed, slots = rollout.select(sequences)
        hidden, ref_hidden = policy.hidden(packed), reference.hidden(packed)
        values = critic.values(replace(packed, policy_hidden=hidden, ref_hidden=ref_hidden))
        if not weight:  # a spare pass
            return
        rollout.values[slots] = values
        if rollout.ref_hidden is not None:
            rollout.ref_hidden[slots] = ref_hidden
        tell_head(2 * len(slots), head)
        out = policy_reference_logprobs(
            pad(hidden, (0, widen), value=1.0), pad(ref_hidden, (0, widen), value=1.0), head, packed.labels,
            bias=bias, ref_weight=ref_head, temperature=temperature, softcap=policy.model.softcap,
            exact_kl=kl_estimator == "exact", scored=packed.scored,
        )  # fmt: skip
        rollout.logprobs[slots], rollout.ref_logprobs[slots] = out.logprobs, out.ref_logprobs
        rollout.kl[slots] = out.kl if out.kl is not None else ESTIMATORS[kl_estimator](out.logprobs, out.ref_logprobs)

    own, lengths = list(rollout.own), rollout.lengths
    micro_batches.run(policy.model, by_tokens([lengths[b] for b in own], own), score, spare=own[:1])


def _heads(policy: Policy, reference: Policy) -> tuple[Tensor, Tensor | None, Tensor | None, int]:
    """Weight and bias of the policy's language-model head, the reference's weight where it is another, and by how many
    columns the hidden states are widened: with two biases, each is a column of its weight that reads a hidden 1."""
    weight, bias = policy.model.lm_head
    if reference.model is policy.model:
        return weight, bias, None, 0
    ref_weight, ref_bias = reference.model.lm_head
    if bias is None or ref_bias is None:
        return weight, bias, ref_weight, 0
    return torch.cat([weight, bias[:, None]], 1), None, torch.cat([ref_weight, ref_bias[:, None]], 1), 1


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    return (logprobs - ref_logprobs).square() / 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    return torch.expm1(ref_logprobs - logprobs) - (ref_logprobs - logprobs)


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
"""Per-token KL estimators of (Schulman 2020, "Approximating KL divergence"); `exact` needs the whole vocabulary."""
