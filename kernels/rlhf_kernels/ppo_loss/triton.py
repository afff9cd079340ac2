"""PPO's loss on a GPU in two launches: one pass writes every gradient and a block's sums, a second adds up the blocks.

Sums are float32 within a block of slots and float64 over the blocks, in a fixed order: equal inputs give equal results.
Nothing waits for the device; a denominator that is not given is counted there, which costs small launches of its own.

The gradient where max, min or clamp has two answers is torch's: a maximum or minimum of equal numbers passes half to
each, a clamp passes all at its bounds. Comparisons are written so that a NaN inside a mask reaches the loss.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlhf_kernels.ppo_loss.reference import Arguments
from rlhf_kernels.triton_support import Variant, float32_refusal

BLOCK = 512  # with six columns and two masks in registers, twice as many slots would spill
SUMS = 8  # columns of the blocks' sums; the last is not used


@triton.jit
def _clamped(x, low, high):
    """clamp(x, low, high), NaN where any of them is, and its derivative."""
    inside = tl.where(low <= high, x, low + high)
    outside = (x < low) | (x > high)
    return tl.where(x < low, low, tl.where(x > high, high, inside)), tl.where(outside, 0.0, 1.0)


@triton.jit
def _share_of_first(first, second):
    """Derivative of max(first, second) by `first`; that by `second` is the rest of 1."""
    return tl.where(first > second, 1.0, tl.where(first == second, 0.5, 0.0))


@triton.jit
def _policy(log_ratio, advantage, low, high, dual_clip, log_ratio_clamp):
    """A slot's loss, its derivative by log_ratio, its ratio, and whether the clipped ratio is the one that counts."""
    bounded, d_bounded = _clamped(log_ratio, -log_ratio_clamp, log_ratio_clamp)
    ratio = tl.exp(bounded)
    near_one, d_near_one = _clamped(ratio, low, high)
    unclipped = -advantage * ratio
    clipped = -advantage * near_one
    first = _share_of_first(unclipped, clipped)
    loss = tl.where(unclipped >= clipped, unclipped, clipped)
    slope = -advantage * (first + (1.0 - first) * d_near_one)
    most = -advantage * dual_clip
    negative = advantage < 0
    slope = tl.where(negative, slope * (1.0 - _share_of_first(loss, most)), slope)
    loss = tl.where(negative & (loss > most), most, loss)
    return loss, slope * ratio * d_bounded, ratio, clipped > unclipped


@triton.jit
def _value(value, old_value, ret, cliprange):
    """A slot's value loss, its derivative by value, and whether the clipped value is the one that counts."""
    near_old, d_near_old = _clamped(value, old_value - cliprange, old_value + cliprange)
    unclipped = (value - ret) * (value - ret)
    clipped = (near_old - ret) * (near_old - ret)
    first = _share_of_first(unclipped, clipped)
    slope = first * (value - ret) + (1.0 - first) * (near_old - ret) * d_near_old
    return 0.5 * tl.where(unclipped >= clipped, unclipped, clipped), slope, clipped > unclipped


@triton.jit(do_not_specialize=["size"], do_not_specialize_on_alignment=["denominator", "value_denominator"])
def ppo_loss_kernel(
    logprobs,
    old_logprobs,
    advantages,
    values,
    old_values,
    returns,
    mask,
    value_mask,
    entropy,  # or None
    weight,  # or None
    denominator,  # ()
    value_denominator,  # ()
    d_logprobs,
    d_values,
    d_entropy,  # or None, as entropy
    sums,  # (blocks, SUMS): policy loss, value loss, entropy, clipped, values clipped, squared log-ratio / 2, ratio
    size,
    low,
    high,
    cliprange_value,
    dual_clip,
    log_ratio_clamp,
    vf_coef,
    entropy_coef,
    SUMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per block of slots. Limits that are off are infinite.

    Nothing outside a mask is read: it counts as 0, which has no loss, no gradient and no clipping, but a ratio of 1.
    """
    slot = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = slot < size
    row = sums + tl.program_id(0).to(tl.int64) * SUMS

    m = tl.load(mask + slot, mask=inside, other=0).to(tl.int1)
    log_ratio = tl.load(logprobs + slot, mask=m, other=0.0) - tl.load(old_logprobs + slot, mask=m, other=0.0)
    advantage = tl.load(advantages + slot, mask=m, other=0.0)
    loss, slope, ratio, clipped = _policy(log_ratio, advantage, low, high, dual_clip, log_ratio_clamp)
    if weight is not None:
        w = tl.load(weight + slot, mask=m, other=0.0)
        loss *= w
        slope *= w
    per_slot = 1.0 / tl.load(denominator)
    tl.store(d_logprobs + slot, slope * per_slot, mask=inside)
    tl.store(row, tl.sum(loss, 0))
    tl.store(row + 3, tl.sum(clipped.to(tl.float32), 0))
    tl.store(row + 5, tl.sum(0.5 * log_ratio * log_ratio, 0))
    tl.store(row + 6, tl.sum(tl.where(m, ratio, 0.0), 0))
    if entropy is not None:
        tl.store(row + 2, tl.sum(tl.load(entropy + slot, mask=m, other=0.0), 0))
        tl.store(d_entropy + slot, tl.where(m, -entropy_coef * per_slot, 0.0), mask=inside)

    m = tl.load(value_mask + slot, mask=inside, other=0).to(tl.int1)
    value = tl.load(values + slot, mask=m, other=0.0)
    old_value = tl.load(old_values + slot, mask=m, other=0.0)
    ret = tl.load(returns + slot, mask=m, other=0.0)
    loss, slope, clipped = _value(value, old_value, ret, cliprange_value)
    per_slot = vf_coef / tl.load(value_denominator)
    tl.store(d_values + slot, slope * per_slot, mask=inside)
    tl.store(row + 1, tl.sum(loss, 0))
    tl.store(row + 4, tl.sum(clipped.to(tl.float32), 0))


@triton.jit
def _mean(sums, column, blocks, denominator, SUMS: tl.constexpr, BLOCKS: tl.constexpr):
    """Sum of one column over the blocks, in float64 and always in the same order, over the denominator."""
    total = tl.zeros((BLOCKS,), tl.float64)
    for first in range(0, blocks, BLOCKS):
        i = first + tl.arange(0, BLOCKS)
        total += tl.load(sums + i.to(tl.int64) * SUMS + column, mask=i < blocks, other=0.0).to(tl.float64)
    return (tl.sum(total, 0) / denominator).to(tl.float32)


@triton.jit(do_not_specialize=["blocks"], do_not_specialize_on_alignment=["denominator", "value_denominator"])
def ppo_metrics_kernel(
    sums,  # (blocks, SUMS) of `ppo_loss_kernel`
    denominator,  # ()
    value_denominator,  # ()
    metrics,  # (8,)
    blocks,
    vf_coef,
    entropy_coef,
    HAS_ENTROPY: tl.constexpr,
    SUMS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """One program: loss, policy_loss, value_loss, entropy, clipfrac, value_clipfrac, approx_kl, ratio_mean."""
    n = tl.load(denominator).to(tl.float64)
    n_values = tl.load(value_denominator).to(tl.float64)
    policy_loss = _mean(sums, 0, blocks, n, SUMS, BLOCKS)
    value_loss = _mean(sums, 1, blocks, n_values, SUMS, BLOCKS)
    entropy = tl.zeros((), tl.float32)
    if HAS_ENTROPY:
        entropy = _mean(sums, 2, blocks, n, SUMS, BLOCKS)
    tl.store(metrics, policy_loss + vf_coef * value_loss - entropy_coef * entropy)
    tl.store(metrics + 1, policy_loss)
    tl.store(metrics + 2, value_loss)
    tl.store(metrics + 3, entropy)
    tl.store(metrics + 4, _mean(sums, 3, blocks, n, SUMS, BLOCKS))
    tl.store(metrics + 5, _mean(sums, 4, blocks, n_values, SUMS, BLOCKS))
    tl.store(metrics + 6, _mean(sums, 5, blocks, n, SUMS, BLOCKS))
    tl.store(metrics + 7, _mean(sums, 6, blocks, n, SUMS, BLOCKS))


COLUMNS = ("logprobs", "old_logprobs", "advantages", "values", "old_values", "returns")
NUMBERS = ("low", "high", "cliprange_value", "dual_clip", "log_ratio_clamp", "vf_coef", "entropy_coef")


def loss_form(*, entropy: bool, weight: bool) -> Variant:
    """The form with or without entropy, with or without a weight per slot."""
    signature = {**dict.fromkeys(COLUMNS, "*fp32"), "mask": "*u1", "value_mask": "*u1"}
    given = {"entropy": entropy, "weight": weight, "d_entropy": entropy}
    outputs = ("denominator", "value_denominator", "d_logprobs", "d_values", "sums")
    signature |= dict.fromkeys((*outputs, *(name for name in given if given[name])), "*fp32")
    signature |= {"size": "i32", **dict.fromkeys(NUMBERS, "fp32")}
    constants = {"SUMS": SUMS, "BLOCK": BLOCK} | {name: None for name in given if not given[name]}
    return Variant("ppo_loss", ppo_loss_kernel, signature, constants, num_warps=4)


def metrics_form(*, entropy: bool) -> Variant:
    """The form with or without entropy."""
    signature = dict.fromkeys(("sums", "denominator", "value_denominator", "metrics"), "*fp32")
    signature |= {"blocks": "i32", "vf_coef": "fp32", "entropy_coef": "fp32"}
    constants = {"HAS_ENTROPY": entropy, "SUMS": SUMS, "BLOCKS": 256}
    return Variant("ppo_metrics", ppo_metrics_kernel, signature, constants, num_warps=4)


VARIANTS = [
    *(loss_form(entropy=entropy, weight=weight) for entropy in (False, True) for weight in (False, True)),
    *(metrics_form(entropy=entropy) for entropy in (False, True)),
]


def refusal(a: Arguments) -> str | None:
    """Why Triton cannot take these columns, or None."""
    return float32_refusal(a, *COLUMNS, "entropy", "weight")


def ppo_loss(a: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As the reference; arguments are taken as checked and supported."""
    size, has_entropy = a.logprobs.numel(), a.entropy is not None
    mask = torch.ones_like(a.logprobs, dtype=torch.bool) if a.mask is None else a.mask.contiguous()
    value_mask = mask if a.value_mask is None else a.value_mask.contiguous()
    shared = {
        "denominator": _denominator(a.denominator, mask),
        "value_denominator": _denominator(a.value_denominator, value_mask),
        "vf_coef": a.vf_coef,
        "entropy_coef": a.entropy_coef,
    }
    blocks = max(1, -(-size // BLOCK))
    sums = a.logprobs.new_empty(blocks, SUMS)
    metrics, d_logprobs, d_values = (a.logprobs.new_empty(n) for n in (8, size, size))
    d_entropy = a.logprobs.new_empty(size if has_entropy else 0)
    loss_form(entropy=has_entropy, weight=a.weight is not None).launch(
        (blocks,),
        **{name: getattr(a, name).contiguous() for name in COLUMNS},
        mask=mask,
        value_mask=value_mask,
        entropy=None if a.entropy is None else a.entropy.contiguous(),
        weight=None if a.weight is None else a.weight.contiguous(),
        d_logprobs=d_logprobs,
        d_values=d_values,
        d_entropy=d_entropy if has_entropy else None,
        sums=sums,
        size=size,
        low=1 - a.cliprange,
        high=1 + a.cliprange,
        cliprange_value=_limit(a.cliprange_value),
        dual_clip=_limit(a.dual_clip),
        log_ratio_clamp=_limit(a.log_ratio_clamp),
        **shared,
    )
    metrics_form(entropy=has_entropy).launch((1,), sums=sums, metrics=metrics, blocks=blocks, **shared)
    return metrics, d_logprobs, d_values, d_entropy


def _denominator(given: Tensor | None, mask: Tensor) -> Tensor:
    """() float32 on the device: the number of True slots, at least 1, unless it is given."""
    return (mask.sum().clamp(min=1) if given is None else given).to(torch.float32)


def _limit(given: float | None) -> float:
    return math.inf if given is None else given
