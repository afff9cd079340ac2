"""What must hold in every run, checked as it goes; a violation is a bug, and stops the run with what was seen."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_fast.rollout.rollout import Rollout

KL_AT_START = {torch.float32: 1e-4, torch.bfloat16: 1e-2}  # nats, mean per token
ROUNDING = 1e-5  # nats: how far below 0 a sum over the vocabulary may round
FIRST_RATIO = {torch.float32: 1e-5, torch.bfloat16: 1e-3}


class InvariantError(RuntimeError):
    """The computation contradicts itself: a bug here, in the model's implementation, or in the hardware."""


def check_scored(rollout: Rollout, *, first: bool, exact: bool, dtype: torch.dtype) -> None:
    """Log-probs <= 0 and an `exact` KL >= 0 everywhere; before the first update the policy is the reference: KL 0."""
    for name in ("logprobs", "ref_logprobs"):
        highest = float(getattr(rollout, name).max())
        if not highest <= 0:
            raise InvariantError(f"{name} reach {highest}; a log-prob is at most 0.")
    kl = rollout.kl[rollout.action_mask]
    if exact and not float(kl.min()) >= -ROUNDING:
        raise InvariantError(f"the exact KL of a token is {float(kl.min())}; a KL is at least 0.")
    mean = float(kl.mean())
    if first and not abs(mean) <= KL_AT_START[dtype]:
        raise InvariantError(
            f"before any update the KL between policy and reference is {mean:.3g} nats a token, allowed "
            f"{KL_AT_START[dtype]} in {dtype}: the policy did not start as the reference."
        )


def check_entropy(entropy: Tensor | None) -> None:
    if entropy is not None and entropy.numel() and not float(entropy.detach().min()) >= -ROUNDING:
        raise InvariantError(f"the entropy of a token is {float(entropy.detach().min())}; an entropy is at least 0.")


def check_first_ratio(ratio: float, clipped: float, dtype: torch.dtype) -> None:
    """Before the first step on a rollout the mean probability ratio is 1 and no share of the tokens is clipped."""
    if not abs(ratio - 1) <= FIRST_RATIO[dtype] or (dtype == torch.float32 and clipped > 0):
        raise InvariantError(
            f"on the first minibatch after a rollout the mean ratio is {ratio:.6f} and {clipped:.2%} of the tokens are "
            f"clipped; expected 1 within {FIRST_RATIO[dtype]} in {dtype}: scoring and update do not see "
            "the same network."
        )
