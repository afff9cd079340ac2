"""Row kernels over a chunk of logits, which `logprobs.triton` launches.

One program streams one row of u = h W^T, in float32, over the vocabulary.

Exactness. z = softcap(u + b) / T is formed as a block is read, and only then is the vocabulary's tail cut off, at -inf.
Every lane keeps its own largest logit and its sum of e^(z - largest), begun at the label's logit and at 0: the label's
own term is added last, so that 1 - p_y is a sum of the others and never a difference of nearly equal numbers. Rows are
addressed in 64 bits.

The kernels wait for memory: entropy and KL cost arithmetic only and are always computed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rlhf_kernels.triton_math import advance, expm1, log1p, logits
from rlhf_kernels.triton_support import POINTER, Variant

PER_ROW = ["labels", "logprobs", "entropy", "largest", "log_sum"]  # one number a row: never worth a form of its own


@triton.jit
def _sums_of_others(u, bias, label, z_y, vocabulary, inverse_temperature, softcap, BLOCK: tl.constexpr):
    """Of a row without its label: the largest logit (z_y at least), sum of e^(z - largest), and of that times
    (z - largest)."""
    lanes = tl.zeros((BLOCK,), tl.float32)
    m, total, moment = lanes + z_y, lanes, lanes
    for first in range(0, vocabulary, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < vocabulary
        z, _ = logits(tl.load(u + column, mask=inside, other=0.0), bias, column, inside, inverse_temperature, softcap)
        d, e, grew, new_m, new_total = advance(z, inside & (column != label), m, total)
        moment = tl.where(grew, e * (moment - total * d), moment + tl.where(e > 0, e * d, 0.0))
        m, total = new_m, new_total
    top = tl.max(m, 0)
    share = tl.exp(m - top)
    return top, tl.sum(total * share, 0), tl.sum(share * (moment + total * (m - top)), 0)


@triton.jit
def _leave_gradient(
    u, gradient, bias, label, top, row_sum, vocabulary, inverse_temperature, softcap, BLOCK: tl.constexpr
):
    """Put p_v dz_v/du_v, and 0 for the label, in the place of a row's logits."""
    for first in range(0, vocabulary, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < vocabulary
        block = tl.load(u + column, mask=inside, other=0.0)
        z, slope = logits(block, bias, column, inside, inverse_temperature, softcap)
        g = tl.where(column == label, 0.0, tl.exp(z - top) / row_sum * slope)
        tl.debug_barrier()  # a 16-bit entry lies over a logit of this block or an earlier one: all have been read
        tl.store(gradient + column, g.to(gradient.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize_on_alignment=[*PER_ROW, "pull"])
def score_kernel(
    u,  # (n, V) rows `stride` apart
    labels,  # (n,)
    bias,  # (V,) or None
    logprobs,  # (n,)
    entropy,  # (n,)
    largest,  # (n,)
    log_sum,  # (n,): log sum e^(z - largest)
    gradient,  # None, or u's own memory in the operands' dtype, rows `gradient_stride` apart: becomes p_v dz_v/du_v
    pull,  # None, or (n,): (1 - p_y) dz_y/du_y, which the gradient leaves out
    vocabulary,
    stride,
    gradient_stride,
    inverse_temperature,
    softcap,  # or None
    BLOCK: tl.constexpr,
):
    """Log-prob of the label, entropy and statistics of a row, and its part in the gradient of the log-prob."""
    row = tl.program_id(0)
    u += row.to(tl.int64) * stride
    label = tl.load(labels + row).to(tl.int32)
    z_y, slope_y = logits(tl.load(u + label), bias, label, True, inverse_temperature, softcap)

    top, others, moment = _sums_of_others(u, bias, label, z_y, vocabulary, inverse_temperature, softcap, BLOCK)
    own = tl.exp(z_y - top)
    row_sum = others + own
    row_moment = moment + own * (z_y - top)
    log_of_sum = tl.where(z_y == top, log1p(others), tl.log(row_sum))
    tl.store(logprobs + row, z_y - top - log_of_sum)
    tl.store(entropy + row, log_of_sum - row_moment / row_sum)
    tl.store(largest + row, top)
    tl.store(log_sum + row, log_of_sum)

    if gradient is not None:
        tl.store(pull + row, slope_y * others / row_sum)
        gradient += row.to(tl.int64) * gradient_stride
        _leave_gradient(u, gradient, bias, label, top, row_sum, vocabulary, inverse_temperature, softcap, BLOCK)


@triton.jit(do_not_specialize_on_alignment=[*PER_ROW, "d_logprobs", "d_entropy"])
def gradient_kernel(
    u,  # (n, V) rows `stride` apart
    labels,  # (n,)
    bias,  # (V,) or None
    logprobs,  # (n,)
    entropy,  # (n,)
    largest,  # (n,)
    log_sum,  # (n,)
    d_logprobs,  # (n,)
    d_entropy,  # (n,)
    gradient,  # u's own memory in the operands' dtype, rows `gradient_stride` apart: becomes the gradient of u
    vocabulary,
    stride,
    gradient_stride,
    inverse_temperature,
    softcap,  # or None
    BLOCK: tl.constexpr,
):
    """dz_v = d_logprob ([v = y] - p_v) - d_entropy p_v (log p_v + H), times dz_v/du_v."""
    row = tl.program_id(0)
    u += row.to(tl.int64) * stride
    gradient += row.to(tl.int64) * gradient_stride
    label = tl.load(labels + row).to(tl.int32)
    h = tl.load(entropy + row)
    top = tl.load(largest + row)
    log_of_sum = tl.load(log_sum + row)
    d_lp = tl.load(d_logprobs + row)
    d_h = tl.load(d_entropy + row)
    rest = -expm1(tl.load(logprobs + row))  # 1 - p_y
    for first in range(0, vocabulary, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < vocabulary
        block = tl.load(u + column, mask=inside, other=0.0)
        z, slope = logits(block, bias, column, inside, inverse_temperature, softcap)
        log_p = z - top - log_of_sum
        p = tl.exp(log_p)
        d_z = d_lp * tl.where(column == label, rest, -p) - d_h * tl.where(p > 0, p * (log_p + h), 0.0)
        tl.debug_barrier()  # as in _leave_gradient
        tl.store(gradient + column, (d_z * slope).to(gradient.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize_on_alignment=["labels", "logprobs", "ref_logprobs", "kl"])
def compare_kernel(
    u,  # (n, V) of the policy, rows `stride` apart
    ref_u,  # (n, V) of the reference, likewise
    labels,  # (n,)
    bias,  # (V,) or None
    logprobs,  # (n,)
    ref_logprobs,  # (n,)
    kl,  # (n,): sum of p (log p - log r)
    vocabulary,
    stride,
    inverse_temperature,
    softcap,  # or None
    BLOCK: tl.constexpr,
):
    """KL = sum p (z - z_ref) - (log-sum - log-sum of the reference): exactly 0 where the two rows are equal."""
    row = tl.program_id(0)
    u += row.to(tl.int64) * stride
    ref_u += row.to(tl.int64) * stride
    label = tl.load(labels + row).to(tl.int32)
    z_y, _own = logits(tl.load(u + label), bias, label, True, inverse_temperature, softcap)
    ref_y, _own = logits(tl.load(ref_u + label), bias, label, True, inverse_temperature, softcap)

    lanes = tl.zeros((BLOCK,), tl.float32)
    m, total, ref_m, ref_total = lanes + z_y, lanes, lanes + ref_y, lanes
    difference = lanes  # sum of e^(z - m) (z - z_ref)
    for first in range(0, vocabulary, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < vocabulary
        z, _slope = logits(
            tl.load(u + column, mask=inside, other=0.0), bias, column, inside, inverse_temperature, softcap
        )
        ref_z, _slope = logits(
            tl.load(ref_u + column, mask=inside, other=0.0), bias, column, inside, inverse_temperature, softcap
        )
        _d, e, grew, m, total = advance(z, inside, m, total)
        difference = tl.where(grew, difference * e, difference)
        e = tl.where(grew, 1.0, e)
        difference += tl.where(e > 0, e * (z - ref_z), 0.0)
        _ref_d, _ref_e, _ref_grew, ref_m, ref_total = advance(ref_z, inside, ref_m, ref_total)

    top = tl.max(m, 0)
    ref_top = tl.max(ref_m, 0)
    row_sum = tl.sum(total * tl.exp(m - top), 0)
    log_of_sum = tl.log(row_sum)
    ref_log_of_sum = tl.log(tl.sum(ref_total * tl.exp(ref_m - ref_top), 0))
    mean_difference = tl.sum(difference * tl.exp(m - top), 0) / row_sum
    tl.store(logprobs + row, z_y - top - log_of_sum)
    tl.store(ref_logprobs + row, ref_y - ref_top - ref_log_of_sum)
    tl.store(kl + row, mean_difference - (top - ref_top) - (log_of_sum - ref_log_of_sum))


BLOCK = 2048
ROW_SIZES = {"vocabulary": "i32", "stride": "i32", "gradient_stride": "i32"}


def _options(bias: bool, softcap: bool) -> tuple[dict[str, str], dict[str, None]]:
    """Types of what is given among bias and softcap, and None for the others."""
    types = {"bias": "*fp32"} if bias else {}
    types |= {"softcap": "fp32"} if softcap else {}
    return types, {name: None for name in ("bias", "softcap") if name not in types}


def score(gradient: torch.dtype | None, *, bias: bool, softcap: bool) -> Variant:
    """The form that writes its part of the gradient in a dtype, or none."""
    types, absent = _options(bias, softcap)
    signature = {"u": "*fp32", "labels": "*i64", **dict.fromkeys(PER_ROW[1:], "*fp32"), **types, **ROW_SIZES}
    signature |= {"inverse_temperature": "fp32"}
    constants = {"BLOCK": BLOCK, **absent}
    if gradient is None:
        constants |= {"gradient": None, "pull": None, "gradient_stride": None}
        del signature["gradient_stride"]
    else:
        signature |= {"gradient": POINTER[gradient], "pull": "*fp32"}
    return Variant("score", score_kernel, signature, constants, num_warps=8)


def gradient(dtype: torch.dtype, *, bias: bool, softcap: bool) -> Variant:
    """The form that writes the gradient of the logits in a dtype."""
    types, absent = _options(bias, softcap)
    columns = (*PER_ROW[1:], "d_logprobs", "d_entropy")
    signature = {"u": "*fp32", "labels": "*i64", **dict.fromkeys(columns, "*fp32"), **types, **ROW_SIZES}
    signature |= {"gradient": POINTER[dtype], "inverse_temperature": "fp32"}
    return Variant("gradient", gradient_kernel, signature, {"BLOCK": BLOCK, **absent}, num_warps=8)


def compare(*, bias: bool, softcap: bool) -> Variant:
    """The form for policy and reference."""
    types, absent = _options(bias, softcap)
    signature = {"u": "*fp32", "ref_u": "*fp32", "labels": "*i64", **types}
    signature |= dict.fromkeys(("logprobs", "ref_logprobs", "kl"), "*fp32")
    signature |= {"vocabulary": "i32", "stride": "i32", "inverse_temperature": "fp32"}
    constants = {"BLOCK": BLOCK // 2, **absent}  # two rows at a time: as wide as the others, it would spill
    return Variant("compare", compare_kernel, signature, constants, num_warps=8)


OPERANDS = (torch.float32, torch.bfloat16, torch.float16)
_BOTH = [(bias, softcap) for bias in (False, True) for softcap in (False, True)]
VARIANTS = [
    *(score(dtype, bias=bias, softcap=softcap) for dtype in (None, *OPERANDS) for bias, softcap in _BOTH),
    *(gradient(dtype, bias=bias, softcap=softcap) for dtype in OPERANDS for bias, softcap in _BOTH),
    *(compare(bias=bias, softcap=softcap) for bias, softcap in _BOTH),
]
