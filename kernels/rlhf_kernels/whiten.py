"""Moments of a column in float64, their merger across micro-batches or processes, and whitening in place.

Here: count, mean and sum of squared deviations of one column, the exact merger of two, and the normalisation by a
column's own moments or by those gathered over a larger batch. Not here: the exchange between processes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_kernels.checks import check_mask
from rlhf_kernels.extension import address, column_refusal, native
from rlhf_kernels.op import Backend, Op
from rlhf_kernels.triton_support import in_triton

__all__ = ["Moments", "merge_moments", "moments", "whiten_"]


class Moments(NamedTuple):
    """Number of entries, their mean, and the sum of their squared deviations from it: 0-dim float64 tensors."""

    count: Tensor  # type: ignore[assignment]  # the field's name hides tuple.count
    mean: Tensor
    m2: Tensor


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two disjoint sets of entries, from the moments of each; exact but for rounding (Chan,
    Golub and LeVeque 1979)."""
    count = a.count + b.count
    b_share = b.count / count.clamp(min=1)
    delta = b.mean - a.mean
    return Moments(count, a.mean + delta * b_share, a.m2 + b.m2 + delta.square() * a.count * b_share)


class MomentsArguments(NamedTuple):
    x: Tensor
    mask: Tensor | None  # as x


class WhitenArguments(NamedTuple):
    x: Tensor  # whitened
    mask: Tensor | None  # as x
    moments: Tensor | None  # (3,) float64, or x's own
    shift_mean: bool
    ddof: int
    eps: float


def moments(x: Tensor, *, mask: Tensor | None = None, backend: str | None = None) -> Moments:
    """Moments of the entries of `x` (any shape, any float dtype) where `mask` (bool, same shape) is True.

    Accumulated in float64 in two passes. Entries outside the mask may hold anything, NaN included. Of no entries,
    count, mean and m2 are all 0. Nothing is mutated and no gradient flows. `backend` is "native" (C++, contiguous
    float32 or float64 on the CPU), "triton" (CUDA) or "reference" (torch); None takes RLHF_FAST_BACKEND from the
    environment, else the first that can run. Raises ValueError or TypeError for a mask of another shape or dtype, and
    for a chosen backend that cannot run.
    """
    check_mask("mask", mask, tuple(x.shape))
    return Moments(*MOMENTS(MomentsArguments(x.detach(), mask), backend).unbind())


def whiten_(
    x: Tensor,
    *,
    mask: Tensor | None = None,
    moments: Moments | None = None,
    shift_mean: bool = True,
    ddof: int = 1,
    eps: float = 1e-8,
    backend: str | None = None,
) -> None:
    """Replace `x` in place by (x - mean) / sqrt(m2 / (count - ddof) + eps), where `mask` is True.

    `x` is float32 or float64 of any shape, `mask` bool of the same shape; entries outside it are neither counted nor
    touched. `moments` are those of the whole batch where `x` is only a part of it; the default is x's own under the
    mask. With `shift_mean=False` the mean is kept (only the scale changes around it). With count <= ddof, `x` stays
    as it is. Convention of Ziegler et al. 2019 and TRL. No gradient flows.

    `backend` is "native" (C++, contiguous CPU tensors), "triton" (CUDA) or "reference" (torch); None takes
    RLHF_FAST_BACKEND from the environment, else the first that can run. Raises ValueError or TypeError for a mask,
    dtype or `ddof` that does not fit, and for a chosen backend that cannot run.
    """
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x has dtype {x.dtype}, expected float32 or float64: convert it with .float()")
    check_mask("mask", mask, tuple(x.shape))
    check_ddof(ddof)
    stacked = None if moments is None else torch.stack(moments)
    WHITEN(WhitenArguments(x.detach(), mask, stacked, shift_mean, ddof, eps), backend)


def check_ddof(ddof: int) -> None:
    """Raises ValueError for less than 0."""
    if ddof < 0:
        raise ValueError(f"ddof is {ddof}, expected 0 (population variance) or 1 (sample variance)")


def _moments_reference(a: MomentsArguments) -> Tensor:
    """The specification, as one tensor (3,) f64: two passes."""
    mask = torch.ones_like(a.x, dtype=torch.bool) if a.mask is None else a.mask
    x = torch.where(mask, a.x.double(), 0.0)
    count = mask.sum(dtype=torch.float64)
    mean = x.sum() / count.clamp(min=1)
    m2 = torch.where(mask, x - mean, 0.0).square().sum()
    return torch.stack([count, mean, m2])


def _whiten_reference(a: WhitenArguments) -> None:
    """The specification; nothing waits for the device."""
    moments = _moments_reference(MomentsArguments(a.x, a.mask)) if a.moments is None else a.moments
    count, mean, m2 = moments.unbind()
    changes = count > a.ddof
    if a.mask is not None:
        changes = changes & a.mask
    variance = m2 / (count - a.ddof).clamp(min=1)
    whitened = (a.x.double() - mean) * torch.rsqrt(variance + a.eps)
    if not a.shift_mean:
        whitened += mean
    a.x.copy_(torch.where(changes, whitened, a.x))


def _native_refusal(a: MomentsArguments) -> str | None:
    reason = column_refusal(a)
    if reason is None and a.x.dtype not in (torch.float32, torch.float64):
        return f"x has dtype {a.x.dtype}, and it takes float32 or float64"
    return reason


def _moments_native(a: MomentsArguments) -> Tensor:
    """Two passes in float64, on as many threads as torch uses."""
    out = torch.empty(3, dtype=torch.float64)
    run = native.moments_float64 if a.x.dtype == torch.float64 else native.moments_float32
    run(a.x.data_ptr(), address(a.mask), a.x.numel(), out.data_ptr(), torch.get_num_threads())
    return out


def _whiten_native(a: WhitenArguments) -> None:
    """As the reference; x's own moments are taken in the same call."""
    run = native.whiten_float64 if a.x.dtype == torch.float64 else native.whiten_float32
    run(
        a.x.data_ptr(),
        address(a.mask),
        a.x.numel(),
        address(a.moments),
        a.shift_mean,
        a.ddof,
        a.eps,
        torch.get_num_threads(),
    )


MOMENTS = Op(
    "moments",
    MomentsArguments,
    "Tensor",  # (3,) f64: count, mean, m2
    fake=lambda a: a.x.new_empty(3, dtype=torch.float64),
    backends={
        "native": Backend(_moments_native, _native_refusal),
        "triton": in_triton("rlhf_kernels.whiten_triton", "moments"),
        "reference": Backend(_moments_reference),
    },
)
WHITEN = Op(
    "whiten_",
    WhitenArguments,
    "()",
    mutates=("x",),
    fake=lambda a: None,
    backends={
        "native": Backend(_whiten_native, column_refusal),
        "triton": in_triton("rlhf_kernels.whiten_triton", "whiten_"),
        "reference": Backend(_whiten_reference),
    },
)
