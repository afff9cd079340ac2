"""Generalised advantage estimation over padding-free sequences, alone or with the whitening of its advantages.

Here: the recurrence that turns rewards into advantages and gives returns, and its union with `whiten_`, which a GPU
does in one launch. Not here: reward shaping, and whitening itself.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_kernels.checks import check_column, check_mask, check_offsets, check_offsets_type, check_same_dtype
from rlhf_kernels.cuda_support import in_cuda
from rlhf_kernels.extension import address, cannot_run, native
from rlhf_kernels.op import Backend, Op
from rlhf_kernels.triton_support import in_triton
from rlhf_kernels.whiten import WHITEN, WhitenArguments

__all__ = ["gae_", "gae_whiten_"]


class Arguments(NamedTuple):
    rewards: Tensor  # (T,), become advantages
    values: Tensor  # (T,)
    cu_responses: Tensor  # (B+1,)
    gamma: float
    lam: float
    bootstrap: Tensor | None  # (B,)


class GAEWhitenArguments(NamedTuple):
    rewards: Tensor  # (T,), become whitened advantages
    values: Tensor  # (T,)
    cu_responses: Tensor  # (B+1,)
    gamma: float
    lam: float
    bootstrap: Tensor | None  # (B,)
    mask: Tensor | None  # (T,)
    ddof: int
    eps: float


def gae_(
    rewards: Tensor,  # (T,)
    values: Tensor,  # (T,)
    cu_responses: Tensor,  # (B+1,)
    *,
    gamma: float,
    lam: float,
    bootstrap: Tensor | None = None,  # (B,)
    backend: str | None = None,
) -> Tensor:
    """Turn `rewards` into advantages in place and return the returns (T,), a new column (Schulman et al. 2016).

    d_t = r_t + gamma V_{t+1} - V_t and A_t = d_t + gamma lam A_{t+1}, within each sequence; the return is A_t + V_t.
    Beyond a sequence's end A is 0 and V is `bootstrap` of that sequence (default 0). `cu_responses` int32 are the
    offsets of the B sequences; a sequence may be empty. The columns share float32 or float64. No gradient flows.

    `backend` is "native" (C++, contiguous CPU columns), "triton" or "cuda" (CUDA; "cuda" only where it is named) or
    "reference" (torch); None takes RLHF_FAST_BACKEND from the environment, else the first that can run. Raises
    ValueError or TypeError for shapes, dtypes or offsets that do not fit, for gamma or lam outside [0, 1], and for a
    chosen backend that cannot run.
    """
    _check(rewards, values, cu_responses, gamma, lam, bootstrap)
    return GAE(Arguments(rewards.detach(), values.detach(), cu_responses, gamma, lam, bootstrap), backend)


def gae_whiten_(
    rewards: Tensor,  # (T,)
    values: Tensor,  # (T,)
    cu_responses: Tensor,  # (B+1,)
    *,
    gamma: float,
    lam: float,
    bootstrap: Tensor | None = None,  # (B,)
    mask: Tensor | None = None,  # (T,)
    ddof: int = 1,
    eps: float = 1e-8,
    backend: str | None = None,
) -> Tensor:
    """`gae_`, then `whiten_` of the advantages by their own moments under `mask`; returns what `gae_` returns.

    With backend="cuda" both are one launch; the others run one after the other. Arguments, conventions and errors are
    those of the two functions.
    """
    _check(rewards, values, cu_responses, gamma, lam, bootstrap)
    check_mask("mask", mask, tuple(rewards.shape))
    if ddof < 0:
        raise ValueError(f"ddof is {ddof}, expected 0 (population variance) or 1 (sample variance)")
    columns = (rewards.detach(), values.detach(), cu_responses, gamma, lam, bootstrap)
    return GAE_WHITEN(GAEWhitenArguments(*columns, mask, ddof, eps), backend)


def _check(
    rewards: Tensor, values: Tensor, cu_responses: Tensor, gamma: float, lam: float, bootstrap: Tensor | None
) -> None:
    check_column("rewards", rewards, rewards.numel())
    check_column("values", values, rewards.numel())
    check_same_dtype(rewards=rewards, values=values)
    check_offsets_type("cu_responses", cu_responses)
    if bootstrap is not None:
        check_column("bootstrap", bootstrap, cu_responses.numel() - 1)
        check_same_dtype(rewards=rewards, bootstrap=bootstrap)
    for name, factor in (("gamma", gamma), ("lam", lam)):
        if not 0 <= factor <= 1:
            raise ValueError(f"{name} is {factor}, expected a number in [0, 1]")


@torch.no_grad()
def _reference(a: Arguments) -> Tensor:
    """The specification: backward over time, all sequences side by side."""
    rewards, values = a.rewards, a.values
    starts = a.cu_responses[:-1].long()
    lengths = a.cu_responses.diff()
    next_advantage = torch.zeros_like(starts, dtype=rewards.dtype)  # (B,)
    next_value = next_advantage.clone() if a.bootstrap is None else a.bootstrap.clone()
    for t in reversed(range(max(lengths.tolist(), default=0))):
        alive = (t < lengths).nonzero().squeeze(1)
        slots = starts[alive] + t
        value = values[slots]
        delta = rewards[slots] + a.gamma * next_value[alive] - value
        advantage = delta + a.gamma * a.lam * next_advantage[alive]
        rewards[slots] = advantage
        next_advantage[alive] = advantage
        next_value[alive] = value
    return rewards + values


def _native(a: Arguments) -> Tensor:
    """As the reference, to the last bit: two sequences at a time, as many threads as torch uses."""
    returns = torch.empty_like(a.values)
    run = native.gae_float64 if a.rewards.dtype == torch.float64 else native.gae_float32
    run(
        a.rewards.data_ptr(),
        a.values.data_ptr(),
        returns.data_ptr(),
        a.cu_responses.data_ptr(),
        address(a.bootstrap),
        a.cu_responses.numel() - 1,
        a.gamma,
        a.gamma * a.lam,
        torch.get_num_threads(),
    )
    return returns


GAE = Op(
    "gae_",
    Arguments,
    "Tensor",
    mutates=("rewards",),
    fake=lambda a: torch.empty_like(a.values),
    check=lambda a: check_offsets("cu_responses", a.cu_responses, a.rewards.shape[0]),
    backends={
        "native": Backend(_native, cannot_run),
        "triton": in_triton("rlhf_kernels.gae_triton", "gae_"),
        "cuda": in_cuda("rlhf_kernels.gae_cuda", "gae_"),
        "reference": Backend(_reference),
    },
)


def _one_after_the_other(name: str) -> Backend[GAEWhitenArguments]:
    """The backends of that name of `gae_` and of `whiten_`."""

    def parts(a: GAEWhitenArguments) -> tuple[Arguments, WhitenArguments]:
        return Arguments(*a[:6]), WhitenArguments(a.rewards, a.mask, None, True, a.ddof, a.eps)

    def run(a: GAEWhitenArguments) -> Tensor:
        estimate, whiten = parts(a)
        returns = GAE.backends[name].run(estimate)
        WHITEN.backends[name].run(whiten)
        return returns

    def supports(a: GAEWhitenArguments) -> str | None:
        estimate, whiten = parts(a)
        return GAE.backends[name].supports(estimate) or WHITEN.backends[name].supports(whiten)

    return Backend(run, supports, GAE.backends[name].module)


GAE_WHITEN = Op(
    "gae_whiten_",
    GAEWhitenArguments,
    "Tensor",
    mutates=("rewards",),
    fake=lambda a: torch.empty_like(a.values),
    check=lambda a: check_offsets("cu_responses", a.cu_responses, a.rewards.shape[0]),
    backends={
        "native": _one_after_the_other("native"),
        "triton": _one_after_the_other("triton"),
        "cuda": in_cuda("rlhf_kernels.gae_cuda", "gae_whiten_"),
        "reference": _one_after_the_other("reference"),
    },
)
