"""Whitening on a GPU: one launch, and one more for the moments where they are not given; nothing waits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rlhf_kernels.moments import triton as moments_backend
from rlhf_kernels.triton_support import contiguous_


def supports(args: Mapping[str, Any]) -> str | None:
    """Why Triton cannot take these arguments of `whiten_`, or None."""
    return moments_backend.supports(args)


def whiten_(*, x: Tensor, mask: Tensor | None, moments: Tensor | None, shift_mean: bool, ddof: int, eps: float) -> None:
    """As the reference, with moments (3,) float64 or None; arguments are taken as checked and supported."""
    from rlhf_kernels.whiten import triton_kernels as kernels

    if x.numel() == 0:
        return
    mask = None if mask is None else mask.contiguous()
    with contiguous_(x) as work:
        shares = moments_backend.moment_shares(work, mask) if moments is None else moments.contiguous().view(1, 3)
        kernels.whiten(x.dtype, mask=mask is not None, shift_mean=shift_mean).launch(
            (-(-x.numel() // kernels.BLOCK),),
            x=work,
            mask=mask,
            shares=shares,
            size=x.numel(),
            programs=shares.shape[0],
            ddof=ddof,
            eps=eps,
        )
