"""Generalised advantage estimation on a GPU: one launch, one program per sequence, nothing waits for the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf_kernels.triton_support import cannot_run, columns_not_float32, contiguous_


def supports(args: Mapping[str, Any]) -> str | None:
    """Why Triton cannot take these arguments of `gae_`, or None."""
    return cannot_run(args) or columns_not_float32(args, "rewards", "values", "bootstrap")


def gae_(
    *, rewards: Tensor, values: Tensor, cu_responses: Tensor, gamma: float, lam: float, bootstrap: Tensor | None
) -> Tensor:
    """As the reference; arguments are taken as checked and supported."""
    from rlhf_kernels.gae import triton_kernels as kernels

    returns = torch.empty_like(values, memory_format=torch.contiguous_format)
    if rewards.numel() == 0:
        return returns
    with contiguous_(rewards) as work:
        kernels.gae(bootstrap=bootstrap is not None).launch(
            (cu_responses.numel() - 1,),
            rewards=work,
            values=values.contiguous(),
            returns=returns,
            cu_responses=cu_responses.contiguous(),
            bootstrap=None if bootstrap is None else bootstrap.contiguous(),
            gamma=gamma,
            gamma_lam=gamma * lam,
        )
    return returns
