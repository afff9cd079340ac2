"""What must hold in every run, checked as it goes; a violation is a bug, and stops the run with what was seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlhf_fast.rollout.rollout import Rollout

KL_AT_START = {torch.float32: 1e-4, torch.bfloat16: 1e-2}  # nats, mean per token
ROUNDING = 1e-5  # nats: how far below 0 a sum over the vocabulary may round
FIRST_RATIO = {torch.float32: 1e-5, torch.bfloat16: 1e-3}


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


def check_first_ratio(ratio: float, clipped: float, dtype: torch.dtype) -> None:
    """Before the first step on a rollout the mean probability ratio is 1 and no share of the tokens is clipped."""
    if not abs(ratio - 1) <= FIRST_RATIO[dtype] or (dtype == torch.float32 and clipped > 0):
        raise InvariantError(
            f"on the first minibatch after a rollout the mean ratio is {ratio:.6f} and {clipped:.2%} of the tokens are "
            f"clipped; expected 1 within {FIRST_RATIO[dtype]} in {dtype}: scoring and update do not see "
            "the same network."
        )
