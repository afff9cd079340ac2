"""Generalised advantage estimation over padding-free sequences, and the whitening of its advantages.

Here: the recurrence that turns rewards into advantages and gives returns, alone or with `whiten_` after it, which a GPU
does in one launch. Not here: reward shaping, and whitening itself.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_kernels.checks import check_column, check_mask, check_offsets, check_offsets_type, check_same_dtype
from rlhf_kernels.cuda_support import in_cuda
from rlhf_kernels.extension import address, column_refusal, native
from rlhf_kernels.op import Backend, Op
from rlhf_kernels.triton_support import in_triton
from rlhf_kernels.whiten import WHITEN, WhitenArguments, check_ddof

__all__ = ["gae_"]


class Arguments(NamedTuple):
    rewards: Tensor  # (T,), become advantages
    values: Tensor  # (T,)
    cu_responses: Tensor  # (B+1,)
    gamma: float
    lam: float
    bootstrap: Tensor | None  # (B,)
    whiten: bool
    mask: Tensor | None  # (T,)
    ddof: int
    eps: float

    @property
    def whitening(self) -> WhitenArguments:
        """Of the advantages."""
        return WhitenArguments(self.rewards, self.mask, None, True, self.ddof, self.eps)


def gae_(
    rewards: Tensor,  # (T,)
    values: Tensor,  # (T,)
    cu_responses: Tensor,  # (B+1,)
    *,
    gamma: float,
    lam: float,
    bootstrap: Tensor | None = None,  # (B,)
    whiten: bool = False,
    mask: Tensor | None = None,  # (T,)
    ddof: int = 1,
    eps: float = 1e-8,
    backend: str | None = None,
) -> Tensor:
    """Turn `rewards` into advantages in place and return the returns (T,), a new column (Schulman et al. 2016).

    d_t = r_t + gamma V_{t+1} - V_t and A_t = d_t + gamma lam A_{t+1}, within each sequence; the return is A_t + V_t.
    Beyond a sequence's end A is 0 and V is `bootstrap` of that sequence (default 0). `cu_responses` int32 are the
    offsets of the B sequences; a sequence may be empty. The columns share float32 or float64. No gradient flows.

    With `whiten` the advantages are then whitened as by `whiten_`, by their own moments under `mask` (bool; `ddof` and
    `eps` are those of that function); the returns are of the advantages before. Without, the three are not read.

    `backend` is "native" (C++, contiguous CPU columns), "triton" or "cuda" (CUDA; "cuda" only where it is named, in one
    launch) or "reference" (torch); None takes RLHF_FAST_BACKEND from the environment, else the first that can run.
    Raises ValueError or TypeError for shapes, dtypes or offsets that do not fit, for gamma or lam outside [0, 1], and
    for a chosen backend that cannot run.
    """
    check_column("rewards", rewards)
    check_column("values", values, rewards.numel())
    check_same_dtype(rewards=rewards, values=values)
    check_offsets_type("cu_responses", cu_responses)
    if bootstrap is not None:
        check_column("bootstrap", bootstrap, cu_responses.numel() - 1)
        check_same_dtype(rewards=rewards, bootstrap=bootstrap)
    for name, factor in (("gamma", gamma), ("lam", lam)):
        if not 0 <= factor <= 1:
            raise ValueError(f"{name} is {factor}, expected a number in [0, 1]")
    check_mask("mask", mask, tuple(rewards.shape))
    check_ddof(ddof)
    columns = (rewards.detach(), values.detach(), cu_responses)
    return GAE(Arguments(*columns, gamma, lam, bootstrap, whiten, mask, ddof, eps), backend)


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


def _then_whiten(name: str, estimate: Backend[Arguments]) -> Backend[Arguments]:
    """A backend of the estimate alone, then, where that is asked for, the one of `whiten_` of the same name."""
    whitener = WHITEN.backends[name]

    def run(a: Arguments) -> Tensor:
        returns = estimate.run(a)
        if a.whiten:
            whitener.run(a.whitening)
        return returns

    def refusal(a: Arguments) -> str | None:
        return estimate.refusal(a) or (whitener.refusal(a.whitening) if a.whiten else None)

    return Backend(run, refusal, estimate.module)


GAE = Op(
    "gae_",
    Arguments,
    "Tensor",
    mutates=("rewards",),
    fake=lambda a: torch.empty_like(a.values),
    check=lambda a: check_offsets("cu_responses", a.cu_responses, a.rewards.shape[0]),
    backends={
        "native": _then_whiten("native", Backend(_native, column_refusal)),
        "triton": _then_whiten("triton", in_triton("rlhf_kernels.gae_triton", "gae_")),
        "cuda": in_cuda("rlhf_kernels.gae_cuda", "gae_"),
        "reference": _then_whiten("reference", Backend(_reference)),
    },
)
