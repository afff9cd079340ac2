"""Rewards per response slot from the KL penalty and the sequence scores.

Here: the filling of the rewards column. Not here: where a score comes from, the penalty for a missing EOS, whitening.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kernels.checks import check_column, check_offsets, check_same_dtype, check_shape
from rlhf_kernels.shaping import reference

__all__ = ["shape_rewards_"]


def shape_rewards_(
    rewards: Tensor,  # (T,)
    kl: Tensor,  # (T,)
    scores: Tensor,  # (B,)
    score_index: Tensor,  # (B,)
    cu_responses: Tensor,  # (B+1,)
    *,
    kl_coef: float,
) -> None:
    """Fill `rewards` in place with -kl_coef * kl, plus each sequence's score at its score position (Ziegler et al.
    2019).

    `rewards` and `kl` are flat columns over T response slots, `cu_responses` int32 offsets of the B sequences in
    them. `score_index` int64 is the slot, counted over all T, that the score of a sequence lands on; -1 for a
    sequence without slots, whose score lands nowhere. A score of 0.0 is a score like any other. Columns and scores
    share float32 or float64.

    Whatever `rewards` held before is lost. Raises ValueError or TypeError for shapes, dtypes or offsets that do not
    fit, and for a score position outside its own sequence.
    """
    check_column("rewards", rewards, rewards.numel())
    check_column("kl", kl, rewards.numel())
    check_column("scores", scores, scores.numel())
    check_same_dtype(rewards=rewards, kl=kl, scores=scores)
    check_offsets("cu_responses", cu_responses, rewards.numel())
    check_shape("scores", scores, (cu_responses.numel() - 1,))
    _check_score_index(score_index, cu_responses)
    reference.shape_rewards_(rewards, kl, scores, score_index, kl_coef=kl_coef)


def _check_score_index(score_index: Tensor, cu_responses: Tensor) -> None:
    starts, ends = cu_responses[:-1], cu_responses[1:]
    check_shape("score_index", score_index, tuple(starts.shape))
    if score_index.dtype != torch.int64:
        raise TypeError(f"score_index has dtype {score_index.dtype}, expected int64: convert it with .long()")
    inside = (starts <= score_index) & (score_index < ends)
    wrong = (~torch.where(starts == ends, score_index == -1, inside)).nonzero().flatten().tolist()
    if wrong:
        b = wrong[0]
        raise ValueError(
            f"score_index[{b}] is {int(score_index[b])}, expected a slot in [{int(starts[b])}, {int(ends[b])}), or -1 "
            "for a sequence without slots: give the index into the flat column, not into the response"
        )
