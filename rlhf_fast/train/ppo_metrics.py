"""What an iteration of PPO says of itself: its metrics, masked and honest, under TRL's names where it has one; what
must hold in every run (a violation is a bug, and stops it); and warnings of responses that collapse or are cut."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_fast.rewards.source import Scores
from rlhf_fast.rollout.rollout import Rollout, distinct_n, repetition
from rlhf_fast.runtime.checkpoint import State
from rlhf_fast.runtime.device import float32_is_exact
from rlhf_fast.runtime.distributed import sum_over_processes
from rlhf_kernels import PPOLoss

logger = logging.getLogger(__name__)


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
    return dict(zip(names, sum_over_processes(*sums), strict=True)), values[parts:]


def per_response(column: Tensor, rollout: Rollout) -> Tensor:
    """(B,): the sum of a (T,) column over the slots of each response."""
    cu = rollout.cu_responses.long()
    cumulative = torch.cat([column.new_zeros(1, dtype=torch.float64), column.double().cumsum(0)])
    return (cumulative[cu[1:]] - cumulative[cu[:-1]]).float()


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns); 0 is a critic as good as a constant, below 0 a worse one."""
    spread = float(returns.var())
    return float("nan") if not spread > 0 else 1 - float((returns - values).var()) / spread


KL_AT_START = {torch.float32: 1e-4, torch.bfloat16: 1e-2}  # nats, mean per token
ROUNDING = 1e-5  # nats: how far below 0 a sum over the vocabulary may round
FIRST_RATIO = {
    "cpu": {torch.float32: 1e-5, torch.bfloat16: 1e-3},
    "cuda": {torch.float32: 1e-4, torch.bfloat16: 2e-2},
}
"""By how much the first mean ratio may be off 1. Scoring and update pack other sequences together. A CPU multiplies
each row alike all the same; on a GPU the vendor's library takes another kernel for another number of rows, whose sums
come in another order: a logit near 10 is then off by 1e-5 in float32, and by a last place in bfloat16, 0.06. An update
that sees another network (adapter, temperature, positions) is off by tenths.
"""


class InvariantError(RuntimeError):
    """The computation contradicts itself: a bug here, in the model's implementation, or in the hardware."""


def check_scored(rollout: Rollout, *, first: bool, exact: bool, dtype: torch.dtype) -> None:
    """Log-probs <= 0 and an `exact` KL >= 0 everywhere; before the first update the policy is the reference: KL 0."""
    mask = rollout.action_mask
    kl = torch.where(mask, rollout.kl, 0.0)
    seen = [rollout.logprobs.max(), rollout.ref_logprobs.max(), kl.min(), kl.sum() / mask.sum()]
    highest, ref_highest, least, mean = torch.stack(seen).tolist()  # one reading of the device
    for name, value in (("logprobs", highest), ("ref_logprobs", ref_highest)):
        if not value <= 0:
            raise InvariantError(f"{name} reach {value}; a log-prob is at most 0.")
    if exact and not least >= -ROUNDING:
        raise InvariantError(f"the exact KL of a token is {least}; a KL is at least 0.")
    if first and not abs(mean) <= KL_AT_START[dtype]:
        raise InvariantError(
            f"before any update the KL between policy and reference is {mean:.3g} nats a token, allowed "
            f"{KL_AT_START[dtype]} in {dtype}: the policy did not start as the reference."
        )


def check_entropy(least: Sequence[float]) -> None:
    """The least entropies of the micro-batches of a step are not below 0."""
    for entropy in least:
        if not entropy >= -ROUNDING:
            raise InvariantError(f"the entropy of a token is {entropy}; an entropy is at least 0.")


def check_first_ratio(ratio: float, clipped: float, dtype: torch.dtype, device: torch.device) -> None:
    """Before the first step on a rollout the mean probability ratio is 1 and, in float32, no token is clipped."""
    exact = dtype == torch.float32 and float32_is_exact(device)
    allowed = FIRST_RATIO[device.type][torch.float32 if exact else torch.bfloat16]
    if not abs(ratio - 1) <= allowed or (exact and clipped > 0):
        raise InvariantError(
            f"on the first minibatch after a rollout the mean ratio is {ratio:.6f} and {clipped:.2%} of the tokens are "
            f"clipped; expected 1 within {allowed} in {dtype} on {device.type}: scoring and update do not see the same "
            "network."
        )


FLOOR = 0.6  # of the first iteration's distinct-2
REPETITION = 0.3
CUT = 0.75  # of the responses


class CollapseWatch:
    """Compares distinct-2 with that of the first iteration, repetition with a bound, and how many responses are cut by
    the budget; warns once for each. budget: response_length, None where nothing ends a response before it."""

    def __init__(self, budget: int | None = None) -> None:
        self.budget = budget
        self.first: float | None = None
        self.warned: set[str] = set()

    def look(self, metrics: dict[str, float]) -> None:
        distinct, repetition = metrics["rollout/distinct_2"], metrics["rollout/repetition"]
        if self.first is None and not math.isnan(distinct):
            self.first = distinct
        if self.first is not None and distinct < FLOOR * self.first:
            self._collapse("distinct", f"distinct-2 of the responses fell from {self.first:.2f} to {distinct:.2f}")
        if repetition > REPETITION:
            self._collapse("repetition", f"{repetition:.0%} of the 3-grams in a response repeat earlier ones")
        if self.budget is not None and (cut := metrics["rollout/truncated_fraction"]) >= CUT:
            self._warn(
                "cut", f"{cut:.0%} of the responses were cut off by response_length={self.budget} before they ended, "
                "and are scored and learnt like that. Raise it, or start from a model that ends its replies.",
            )  # fmt: skip

    def state(self) -> State:
        return State(facts={"first": self.first, "warned": sorted(self.warned)})

    def load_state(self, state: State) -> None:
        self.first, self.warned = state.facts["first"], set(state.facts["warned"])

    def _collapse(self, kind: str, what: str) -> None:
        self._warn(kind, f"mode collapse: {what}. Raise kl_coef, lower learning_rate, or stop earlier.")

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self.warned:
            self.warned.add(kind)
            logger.warning("%s", text)
