"""Count, mean and sum of squared deviations in float64, and their merger across micro-batches or processes.

Here: statistics of one column and the exact merger of two. Not here: communication, running averages, normalisation.
"""

from __future__ import annotations

from torch import Tensor

from rlhf_kernels.checks import check_mask
from rlhf_kernels.moments import op
from rlhf_kernels.moments.merge import Moments, merge_moments

__all__ = ["Moments", "merge_moments", "moments"]


def moments(x: Tensor, *, mask: Tensor | None = None, backend: str | None = None) -> Moments:
    """Moments of the entries of `x` (any shape, any float dtype) where `mask` (bool, same shape) is True.

    Accumulated in float64 in two passes. Entries outside the mask may hold anything, NaN included. Of no entries,
    count, mean and m2 are all 0. Nothing is mutated and no gradient flows. `backend` is "native" (C++, contiguous
    float32 or float64 on the CPU), "triton" (CUDA) or "reference" (torch); None takes RLHF_FAST_BACKEND from the
    environment, else the first that can run. Raises ValueError or TypeError for a mask of another shape or dtype, and
    for a chosen backend that cannot run.
    """
    check_mask("mask", mask, tuple(x.shape))
    return Moments(*op.moments(x.detach(), mask, backend).unbind())
