"""Generalised advantage estimation over padding-free sequences.

Here: the recurrence that turns rewards into advantages and gives returns. Not here: reward shaping and whitening.
"""

from __future__ import annotations

from torch import Tensor

from rlhf_kernels.checks import check_column, check_offsets_type, check_same_dtype
from rlhf_kernels.gae import op

__all__ = ["gae_"]


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

    `backend` is "native" (C++, contiguous CPU columns), "triton" (CUDA) or "reference" (torch); None takes
    RLHF_FAST_BACKEND from the environment, else the first that can run. Raises ValueError or TypeError for shapes,
    dtypes or offsets that do not fit, for gamma or lam outside [0, 1], and for a chosen backend that cannot run.
    """
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
    return op.gae_(rewards.detach(), values.detach(), cu_responses, gamma, lam, bootstrap, backend)
