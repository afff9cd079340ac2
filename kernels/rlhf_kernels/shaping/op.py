"""`shape_rewards_` as a torch op: it fills `rewards`, and no gradient flows."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kernels import backends
from rlhf_kernels.checks import check_offsets, check_values
from rlhf_kernels.library import Arguments, define
from rlhf_kernels.shaping import native, reference, triton

backends.register("shape_rewards_", "native", native.shape_rewards_, native.supports)
backends.register("shape_rewards_", "triton", triton.shape_rewards_, triton.supports)
backends.register("shape_rewards_", "reference", reference.shape_rewards_)


FEW = 64  # sequences


def _check(args: Arguments) -> None:
    score_index, cu_responses = args["score_index"], args["cu_responses"]
    check_offsets("cu_responses", cu_responses, args["rewards"].shape[0])
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


shape_rewards_ = define(
    "shape_rewards_(Tensor(a!) rewards, Tensor kl, Tensor scores, Tensor score_index, Tensor cu_responses, "
    "float kl_coef, str? backend) -> ()",
    fake=lambda args: None,
    check=_check,
)
