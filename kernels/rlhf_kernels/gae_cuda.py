"""Generalised advantage estimation and whitening by `csrc/cuda/advantages.cu`: one launch, alone or together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlhf_kernels.cuda_support import call
from rlhf_kernels.gae import Arguments, GAEWhitenArguments
from rlhf_kernels.triton_support import columns_not_float32, contiguous_

__all__ = ["gae_", "gae_whiten_", "supports"]

BLOCKS = 512  # at most, whose moments are merged


def supports(a: Arguments | GAEWhitenArguments) -> str | None:
    """Why these columns cannot be taken, or None."""
    return columns_not_float32(a, "rewards", "values", "bootstrap")


def gae_(a: Arguments) -> Tensor:
    """As the reference; arguments are taken as checked and supported."""
    return _run(a, "rlhf_gae")


def gae_whiten_(a: GAEWhitenArguments) -> Tensor:
    """As the reference; arguments are taken as checked and supported."""
    mask = None if a.mask is None else a.mask.contiguous()
    moments = a.rewards.new_empty(BLOCKS, 3, dtype=torch.float64)
    return _run(a, "rlhf_gae_whiten", mask, moments, a.rewards.numel(), a.ddof, a.eps)


def _run(a: Arguments | GAEWhitenArguments, function: str, *whitening: Any) -> Tensor:
    returns = torch.empty_like(a.values, memory_format=torch.contiguous_format)
    values, offsets = a.values.contiguous(), a.cu_responses.contiguous()
    bootstrap = None if a.bootstrap is None else a.bootstrap.contiguous()
    with contiguous_(a.rewards) as work:
        columns = (work, values, returns, offsets, bootstrap, offsets.numel() - 1, a.gamma, a.gamma * a.lam)
        call(function, work.device, *columns, *whitening)
    return returns
