"""Generalised advantage estimation by `csrc/cuda/advantages.cu`: one launch, with whitening or without."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kernels.cuda_support import call
from rlhf_kernels.gae import Arguments
from rlhf_kernels.triton_support import contiguous_, float32_refusal

__all__ = ["gae_", "refusal"]

BLOCKS = 512  # at most, whose moments are merged


def refusal(a: Arguments) -> str | None:
    """Why these columns cannot be taken, or None."""
    return float32_refusal(a, "rewards", "values", "bootstrap")


def gae_(a: Arguments) -> Tensor:
    """As the reference; arguments are taken as checked and supported."""
    returns = torch.empty_like(a.values, memory_format=torch.contiguous_format)
    values, offsets = a.values.contiguous(), a.cu_responses.contiguous()
    bootstrap = None if a.bootstrap is None else a.bootstrap.contiguous()
    mask = None if a.mask is None else a.mask.contiguous()
    with contiguous_(a.rewards) as work:
        columns = (work, values, returns, offsets, bootstrap, offsets.numel() - 1, a.gamma, a.gamma * a.lam)
        if a.whiten:
            moments = work.new_empty(BLOCKS, 3, dtype=torch.float64)
            call("rlhf_gae_whiten", work.device, *columns, mask, moments, work.numel(), a.ddof, a.eps)
        else:
            call("rlhf_gae", work.device, *columns)
    return returns
