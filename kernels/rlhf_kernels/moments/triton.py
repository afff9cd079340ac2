"""Moments on a GPU in two launches, in float64; nothing waits for the device, and equal inputs give equal results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf_kernels.triton_support import POINTER, cannot_run


def supports(args: Mapping[str, Any]) -> str | None:
    """Why Triton cannot take these arguments of `moments`, or None."""
    reason = cannot_run(args)
    if reason is None and not (args["x"].is_floating_point() and args["x"].dtype in POINTER):
        return f"x has dtype {args['x'].dtype}, and it reads float64, float32, bfloat16 and float16"
    if reason is None and args["x"].numel() >= 2**31:
        return f"x has {args['x'].numel()} entries, and it counts below 2^31"
    return reason


def moments(*, x: Tensor, mask: Tensor | None) -> Tensor:
    """As the reference, as one tensor (3,) float64; arguments are taken as checked and supported."""
    from rlhf_kernels.moments import triton_kernels as kernels

    out = x.new_empty(3, dtype=torch.float64)
    shares = moment_shares(x.contiguous(), None if mask is None else mask.contiguous())
    kernels.MERGE.launch((1,), shares=shares, out=out, programs=shares.shape[0])
    return out


def moment_shares(x: Tensor, mask: Tensor | None) -> Tensor:
    """(programs, 3) float64: count, mean and m2 of a share of the contiguous `x` each; they merge to those of x."""
    from rlhf_kernels.moments import triton_kernels as kernels

    programs = min(kernels.MAX_SHARES, max(1, -(-x.numel() // kernels.BLOCK)))
    shares = x.new_empty(programs, 3, dtype=torch.float64)
    kernels.moments(x.dtype, mask=mask is not None).launch((programs,), x=x, mask=mask, shares=shares, size=x.numel())
    return shares
