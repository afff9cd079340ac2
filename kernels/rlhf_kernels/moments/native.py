"""Moments in C++: two passes in float64, on as many threads as torch uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf_kernels.extension import cannot_run, native


def supports(args: Mapping[str, Any]) -> str | None:
    """Why the extension cannot take these arguments of `moments`, or None."""
    reason = cannot_run(args)
    if reason is None and args["x"].dtype not in (torch.float32, torch.float64):
        return f"x has dtype {args['x'].dtype}, and it takes float32 or float64"
    return reason


def moments(*, x: Tensor, mask: Tensor | None) -> Tensor:
    """Count, mean and m2 (3,) float64 of the reference; arguments are taken as checked and supported."""
    out = torch.empty(3, dtype=torch.float64)
    run = native.moments_float64 if x.dtype == torch.float64 else native.moments_float32
    run(x.data_ptr(), 0 if mask is None else mask.data_ptr(), x.numel(), out.data_ptr(), torch.get_num_threads())
    return out
