"""Whitening in C++, on as many threads as torch uses; x's own moments are taken in the same call."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kernels.extension import cannot_run, native

supports = cannot_run


def whiten_(*, x: Tensor, mask: Tensor | None, moments: Tensor | None, shift_mean: bool, ddof: int, eps: float) -> None:
    """As the reference; `moments` (3,) float64 or None for x's own. Arguments are taken as checked and supported."""
    run = native.whiten_float64 if x.dtype == torch.float64 else native.whiten_float32
    run(
        x.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        x.numel(),
        0 if moments is None else moments.data_ptr(),
        shift_mean,
        ddof,
        eps,
        torch.get_num_threads(),
    )
