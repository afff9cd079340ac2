"""Count, mean and sum of squared deviations in float64, and their merger across micro-batches or processes.

Here: statistics of one column and the exact merger of two. Not here: communication, running averages, normalisation.
"""

from __future__ import annotations

from torch import Tensor

from rlhf_kernels.checks import check_mask
from rlhf_kernels.moments import reference
from rlhf_kernels.moments.reference import Moments, merge_moments

__all__ = ["Moments", "merge_moments", "moments"]


def moments(x: Tensor, *, mask: Tensor | None = None) -> Moments:
    """Moments of the entries of `x` (any shape, any float dtype) where `mask` (bool, same shape) is True.

    Accumulated in float64 in two passes. Entries outside the mask may hold anything, NaN included. Of no entries,
    count, mean and m2 are all 0. Nothing is mutated and no gradient flows. Raises ValueError or TypeError for a mask
    of another shape or dtype.
    """
    check_mask("mask", mask, tuple(x.shape))
    return reference.moments(x, mask)
