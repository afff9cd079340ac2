"""Whitening of a column in place, by its own moments or by moments gathered over a larger batch.

Here: the normalisation. Not here: the moments (see `rlhf_kernels.moments`) or their exchange between processes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kernels.checks import check_mask
from rlhf_kernels.moments import Moments
from rlhf_kernels.whiten import op

__all__ = ["whiten_"]


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
    if ddof < 0:
        raise ValueError(f"ddof is {ddof}, expected 0 (population variance) or 1 (sample variance)")
    stacked = None if moments is None else torch.stack(moments)
    op.whiten_(x.detach(), mask, stacked, shift_mean, ddof, eps, backend)
