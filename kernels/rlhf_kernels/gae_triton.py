"""Generalised advantage estimation on a GPU: one launch, one program per sequence, each a reversed scan.

Nothing waits for the device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlhf_kernels.gae import Arguments
from rlhf_kernels.triton_support import Variant, contiguous_, float32_refusal


@triton.jit
def _compose(a_factor, a_term, b_factor, b_term):
    """x -> a_factor x + a_term, then x -> b_factor x + b_term."""
    return a_factor * b_factor, a_term * b_factor + b_term


@triton.jit(do_not_specialize_on_alignment=["cu_responses", "bootstrap"])
def gae_kernel(
    rewards,  # (T,), becomes advantages
    values,  # (T,)
    returns,  # (T,)
    cu_responses,  # (B+1,)
    bootstrap,  # (B,) or None
    gamma,
    gamma_lam,
    BLOCK: tl.constexpr,
):
    """One program per sequence: blocks of time from the end to the beginning, each a scan that starts at the last one's
    first advantage. Position i of a block is `i` steps before the block's end, so that the scan itself runs forward.
    """
    sequence = tl.program_id(0)
    start = tl.load(cu_responses + sequence).to(tl.int64)
    end = tl.load(cu_responses + sequence + 1).to(tl.int64)
    beyond = 0.0
    if bootstrap is not None:
        beyond = tl.load(bootstrap + sequence)
    i = tl.arange(0, BLOCK)
    next_advantage = tl.zeros((), tl.float32)
    for done in range(0, end - start, BLOCK):
        slot = end - 1 - done - i
        inside = slot >= start
        value = tl.load(values + slot, mask=inside, other=0.0)
        next_value = tl.load(values + slot + 1, mask=inside & (slot + 1 < end), other=0.0)
        next_value = tl.where(slot + 1 < end, next_value, beyond)
        delta = tl.load(rewards + slot, mask=inside, other=0.0) + gamma * next_value - value
        term = tl.where(i == 0, delta + gamma_lam * next_advantage, delta)
        factor = tl.zeros((BLOCK,), tl.float32) + gamma_lam
        _, advantage = tl.associative_scan((factor, term), 0, _compose)
        tl.store(rewards + slot, advantage, mask=inside)
        tl.store(returns + slot, advantage + value, mask=inside)
        next_advantage = tl.sum(tl.where(i == BLOCK - 1, advantage, 0.0), 0)


def form(*, bootstrap: bool) -> Variant:
    """The form with or without values beyond the sequences' ends."""
    signature = {"rewards": "*fp32", "values": "*fp32", "returns": "*fp32", "cu_responses": "*i32"}
    signature |= {"bootstrap": "*fp32"} if bootstrap else {}
    signature |= {"gamma": "fp32", "gamma_lam": "fp32"}
    constants = {"BLOCK": 512} | ({} if bootstrap else {"bootstrap": None})
    return Variant("gae", gae_kernel, signature, constants, num_warps=4)


VARIANTS = [form(bootstrap=given) for given in (False, True)]


def refusal(a: Arguments) -> str | None:
    """Why Triton cannot take these columns, or None."""
    return float32_refusal(a, "rewards", "values", "bootstrap")


def gae_(a: Arguments) -> Tensor:
    """As the reference; arguments are taken as checked and supported."""
    returns = torch.empty_like(a.values, memory_format=torch.contiguous_format)
    if a.rewards.numel() == 0:
        return returns
    with contiguous_(a.rewards) as work:
        form(bootstrap=a.bootstrap is not None).launch(
            (a.cu_responses.numel() - 1,),
            rewards=work,
            values=a.values.contiguous(),
            returns=returns,
            cu_responses=a.cu_responses.contiguous(),
            bootstrap=None if a.bootstrap is None else a.bootstrap.contiguous(),
            gamma=a.gamma,
            gamma_lam=a.gamma * a.lam,
        )
    return returns
