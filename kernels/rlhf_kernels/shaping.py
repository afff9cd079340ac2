"""Rewards per response slot from the KL penalty and the sequence scores.

Here: the filling of the rewards column. Not here: where a score comes from, the penalty for a missing EOS, whitening.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_kernels.checks import (
    check_column,
    check_offsets,
    check_offsets_type,
    check_same_dtype,
    check_shape,
    check_values,
)
from rlhf_kernels.extension import column_refusal, native
from rlhf_kernels.op import Backend, Op
from rlhf_kernels.triton_support import in_triton

__all__ = ["shape_rewards_"]

FEW = 64  # sequences


class Arguments(NamedTuple):
    rewards: Tensor  # (T,), filled
    kl: Tensor  # (T,)
    scores: Tensor  # (B,)
    score_index: Tensor  # (B,)
    cu_responses: Tensor  # (B+1,)
    kl_coef: float


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
    check_column("rewards", rewards)
    check_column("kl", kl, rewards.numel())
    check_column("scores", scores)
    check_same_dtype(rewards=rewards, kl=kl, scores=scores)
    check_offsets_type("cu_responses", cu_responses)
    check_shape("scores", scores, (cu_responses.numel() - 1,))
    check_shape("score_index", score_index, (cu_responses.numel() - 1,))
    if score_index.dtype != torch.int64:
        raise TypeError(f"score_index has dtype {score_index.dtype}, expected int64: convert it with .long()")
    columns = (rewards.detach(), kl.detach(), scores.detach())
    SHAPE_REWARDS(Arguments(*columns, score_index, cu_responses, kl_coef), backend)


def _check(a: Arguments) -> None:
    score_index, cu_responses = a.score_index, a.cu_responses
    check_offsets("cu_responses", cu_responses, a.rewards.shape[0])
    starts, ends = cu_responses[:-1], cu_responses[1:]
    if score_index.is_cpu and len(score_index) <= FEW:  # a loop in Python takes less time than seven calls of torch
        rows = zip(score_index.tolist(), starts.tolist(), ends.tolist(), strict=True)
        right: Tensor | bool = all(start <= at < end or (at == -1 and start == end) for at, start, end in rows)
    else:
        right = _fits(score_index, starts, ends).all()

    def message() -> str:
        b = int((~_fits(score_index, starts, ends)).nonzero()[0])
        return (
            f"score_index[{b}] is {int(score_index[b])}, expected a slot in [{int(starts[b])}, {int(ends[b])}), or -1 "
            "for a sequence without slots: give the index into the flat column, not into the response"
        )

    check_values(right, message)


def _fits(score_index: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    return torch.where(starts == ends, score_index == -1, (starts <= score_index) & (score_index < ends))


def _reference(a: Arguments) -> None:
    """The specification."""
    torch.mul(a.kl, -a.kl_coef, out=a.rewards)
    has_slot = a.score_index >= 0  # not `scores != 0`: a score of 0.0 is a score
    a.rewards.index_add_(0, a.score_index[has_slot], a.scores[has_slot])


def _native(a: Arguments) -> None:
    """As the reference, to the last bit. The offsets play no part: score_index counts over all slots."""
    run = native.shape_rewards_float64 if a.rewards.dtype == torch.float64 else native.shape_rewards_float32
    run(
        a.rewards.data_ptr(),
        a.kl.data_ptr(),
        a.rewards.numel(),
        a.scores.data_ptr(),
        a.score_index.data_ptr(),
        a.scores.numel(),
        a.kl_coef,
        torch.get_num_threads(),
    )


SHAPE_REWARDS = Op(
    "shape_rewards_",
    Arguments,
    "()",
    mutates=("rewards",),
    fake=lambda a: None,
    check=_check,
    backends={
        "native": Backend(_native, column_refusal),
        "triton": in_triton("rlhf_kernels.shaping_triton", "shape_rewards_"),
        "reference": Backend(_reference),
    },
)
