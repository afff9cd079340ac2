"""Reward shaping on a GPU: one launch, one program per sequence. Nothing waits for the device."""

from __future__ import annotations

import triton
import triton.language as tl

from rlhf_kernels.shaping import Arguments
from rlhf_kernels.triton_support import Variant, contiguous_, float32_refusal


@triton.jit(do_not_specialize_on_alignment=["scores", "score_index", "cu_responses"])
def shape_rewards_kernel(
    rewards,  # (T,), filled
    kl,  # (T,)
    scores,  # (B,)
    score_index,  # (B,) int64, -1 for none
    cu_responses,  # (B+1,)
    kl_coef,
    BLOCK: tl.constexpr,
):
    """One program per sequence: its score lands on one of its own slots, so no two programs write the same one."""
    sequence = tl.program_id(0)
    start = tl.load(cu_responses + sequence).to(tl.int64)
    end = tl.load(cu_responses + sequence + 1).to(tl.int64)
    score = tl.load(scores + sequence)
    score_slot = tl.load(score_index + sequence)
    for first in range(start, end, BLOCK):
        slot = first + tl.arange(0, BLOCK)
        reward = tl.load(kl + slot, mask=slot < end) * (-kl_coef)
        reward = tl.where(slot == score_slot, reward + score, reward)
        tl.store(rewards + slot, reward, mask=slot < end)


FORM = Variant(
    "shape_rewards",
    shape_rewards_kernel,
    {
        "rewards": "*fp32",
        "kl": "*fp32",
        "scores": "*fp32",
        "score_index": "*i64",
        "cu_responses": "*i32",
        "kl_coef": "fp32",
    },
    {"BLOCK": 1024},
    num_warps=4,
)
VARIANTS = [FORM]


def refusal(a: Arguments) -> str | None:
    """Why Triton cannot take these columns, or None."""
    return float32_refusal(a, "rewards", "kl", "scores")


def shape_rewards_(a: Arguments) -> None:
    """As the reference; arguments are taken as checked and supported. `cu_responses` says who owns which slot."""
    if a.rewards.numel() == 0:
        return
    with contiguous_(a.rewards) as work:
        FORM.launch(
            (a.scores.numel(),),
            rewards=work,
            kl=a.kl.contiguous(),
            scores=a.scores.contiguous(),
            score_index=a.score_index.contiguous(),
            cu_responses=a.cu_responses.contiguous(),
            kl_coef=a.kl_coef,
        )
