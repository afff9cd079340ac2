"""Rewards per response slot from the KL penalty and the sequence scores.

Here: the filling of the rewards column. Not here: where a score comes from, the penalty for a missing EOS, whitening.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kernels.checks import check_column, check_offsets_type, check_same_dtype, check_shape
from rlhf_kernels.shaping import op

__all__ = ["shape_rewards_"]


def shape_rewards_(
    rewards: Tensor,  # (T,)
    kl: Tensor,  # (T,)
    scores: Tensor,  # (B,)
    score_index: Tensor,  # (B,)
    cu_responses: Tensor,  # (B+1,)
    *,
    kl_coef: float,
    backend: str | None = None,
) -> None:
    """Fill `rewards` in place with -kl_coef * kl, plus each sequence's score at its score position (Ziegler et al.
    2019).

    `rewards` and `kl` are flat columns over T response slots, `cu_responses` int32 offsets of the B sequences in
    them. `score_index` int64 is the slot, counted over all T, that the score of a sequence lands on; -1 for a
    sequence without slots, whose score lands nowhere. A score of 0.0 is a score like any other. Columns and scores
    share float32 or float64.

    Whatever `rewards` held before is lost. No gradient flows. `backend` is "native" (C++, contiguous CPU columns),
    "triton" (CUDA) or "reference" (torch); None takes RLHF_FAST_BACKEND from the environment, else the first that can
    run. Raises ValueError or TypeError for shapes, dtypes or offsets that do not fit, for a score position outside its
    own sequence, and for a chosen backend that cannot run.
    """
    check_column("rewards", rewards, rewards.numel())
    check_column("kl", kl, rewards.numel())
    check_column("scores", scores, scores.numel())
    check_same_dtype(rewards=rewards, kl=kl, scores=scores)
    check_offsets_type("cu_responses", cu_responses)
    check_shape("scores", scores, (cu_responses.numel() - 1,))
    check_shape("score_index", score_index, (cu_responses.numel() - 1,))
    if score_index.dtype != torch.int64:
        raise TypeError(f"score_index has dtype {score_index.dtype}, expected int64: convert it with .long()")
    op.shape_rewards_(rewards.detach(), kl.detach(), scores.detach(), score_index, cu_responses, kl_coef, backend)
