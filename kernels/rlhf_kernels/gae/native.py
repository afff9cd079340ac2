"""Generalised advantage estimation in C++: two sequences at a time, as many threads as torch uses."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kernels.extension import cannot_run, native

supports = cannot_run


def gae_(
    *, rewards: Tensor, values: Tensor, cu_responses: Tensor, gamma: float, lam: float, bootstrap: Tensor | None
) -> Tensor:
    """As the reference, to the last bit; arguments are taken as checked and supported."""
    returns = torch.empty_like(values)
    run = native.gae_float64 if rewards.dtype == torch.float64 else native.gae_float32
    run(
        rewards.data_ptr(),
        values.data_ptr(),
        returns.data_ptr(),
        cu_responses.data_ptr(),
        0 if bootstrap is None else bootstrap.data_ptr(),
        cu_responses.numel() - 1,
        gamma,
        gamma * lam,
        torch.get_num_threads(),
    )
    return returns
