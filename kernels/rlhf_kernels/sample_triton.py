"""Sampling on a GPU: one product into float32 logits, then one launch; nothing waits for the device.

One program a row of logits: the Gumbel-max race and the soft-max's sum, streamed over the vocabulary.

The noise is the reference's hash; its exponential variate is formed in float32 as the C++ backend forms it, with a
series where 1 - v would lose the digits of v. So a token differs from the reference's only where two scores come within
a rounding of each other.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlhf_kernels.logprobs.chunked import product
from rlhf_kernels.logprobs.chunked import refusal as logprobs_refusal
from rlhf_kernels.sample import Arguments, needs_all_logits
from rlhf_kernels.triton_math import advance, logits
from rlhf_kernels.triton_support import Variant

__all__ = ["VARIANTS", "refusal", "sample"]


def refusal(a: Arguments) -> str | None:
    """It reads weights as `linear_logprobs` does."""
    return needs_all_logits(a) or logprobs_refusal(a)


@triton.jit
def _mix64(x):
    """SplitMix64's finaliser (Steele et al. 2014) of a uint64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _mix32(x):
    """lowbias32 (Wellons 2018) of a uint32."""
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = (x ^ (x >> 15)) * 0xD35A2D97
    return x ^ (x >> 15)


@triton.jit
def _exponential(bits):
    """-log(1 - v), v = (bits / 2 + 1/2) / 2^31."""
    v = (bits >> 1).to(tl.int32).to(tl.float32) * 4.656612873077393e-10 + 2.3283064365386963e-10
    v = tl.minimum(v, 0.99999994)
    series = v + v * v * (0.5 + v * (0.3333333333333333 + v * 0.25))
    return tl.where(v < 0.015625, series, -tl.log(1.0 - v))


@triton.jit(do_not_specialize_on_alignment=["seeds", "steps", "tokens", "logprobs"])
def sample_kernel(
    u,  # (n, V) rows `stride` apart, float32
    bias,  # (V,) or None
    seeds,  # (n,) int64, or None: the likeliest token
    steps,  # (n,) int64, or None
    tokens,  # (n,) int64
    logprobs,  # (n,)
    vocabulary,
    stride,
    inverse_temperature,
    softcap,  # or None
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    u += row.to(tl.int64) * stride
    if seeds is not None:
        seed = tl.load(seeds + row).to(tl.uint64)
        step = tl.load(steps + row).to(tl.uint64)
        key = _mix64(_mix64(seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) + step * 0x9E3779B97F4A7C15)
        low = key.to(tl.uint32)
        high = (key >> 32).to(tl.uint32)
    lane = tl.arange(0, BLOCK)
    lowest = float("-inf")
    best = tl.full((BLOCK,), lowest, tl.float32)
    chosen = tl.zeros((BLOCK,), tl.float32)
    token = tl.zeros((BLOCK,), tl.int32)
    m = tl.full((BLOCK,), -3.0e38, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, vocabulary, BLOCK):
        column = first + lane
        inside = column < vocabulary
        z, _ = logits(tl.load(u + column, mask=inside, other=0.0), bias, column, inside, inverse_temperature, softcap)
        _d, _e, _grew, m, total = advance(z, inside, m, total)
        score = z
        if seeds is not None:
            score -= tl.log(_exponential(_mix32(_mix32(column.to(tl.uint32) + low) + high)))
        wins = inside & (score > best)
        token = tl.where(wins, column, token)
        chosen = tl.where(wins, z, chosen)
        best = tl.where(wins, score, best)
    top = tl.max(best, 0)
    winner = tl.min(tl.where(best == top, token, 2147483647), 0)
    logit = tl.sum(tl.where((best == top) & (token == winner), chosen, 0.0), 0)
    largest = tl.max(m, 0)
    row_sum = tl.sum(total * tl.exp(m - largest), 0)
    tl.store(tokens + row, winner.to(tl.int64))
    tl.store(logprobs + row, logit - largest - tl.log(row_sum))


def form(*, bias: bool, softcap: bool, greedy: bool) -> Variant:
    signature = {"u": "*fp32", "tokens": "*i64", "logprobs": "*fp32", "vocabulary": "i32", "stride": "i32"}
    signature |= {"inverse_temperature": "fp32"} | ({"bias": "*fp32"} if bias else {})
    signature |= ({"softcap": "fp32"} if softcap else {}) | ({} if greedy else {"seeds": "*i64", "steps": "*i64"})
    absent = {name: None for name in ("bias", "softcap", "seeds", "steps") if name not in signature}
    block = 1024 if bias and softcap else 2048  # with both, 2048 would spill
    return Variant("sample", sample_kernel, signature, {"BLOCK": block, **absent}, num_warps=8)


_BOTH = (False, True)
VARIANTS = [form(bias=b, softcap=s, greedy=g) for b in _BOTH for s in _BOTH for g in _BOTH]


@torch.no_grad()
def sample(a: Arguments) -> tuple[Tensor, Tensor]:
    """As the reference; arguments are taken as checked and supported. The logits (N, V) float32 exist at once."""
    rows, greedy = a.hidden.shape[0], a.temperature == 0
    tokens, logprobs = a.seeds.new_empty(rows), a.hidden.new_empty(rows, dtype=torch.float32)
    if rows == 0:
        return tokens, logprobs
    with torch.autocast(a.hidden.device.type, enabled=False):
        u = product(a.hidden, a.weight.t())
    form(bias=a.bias is not None, softcap=a.softcap is not None, greedy=greedy).launch(
        (rows,),
        u=u,
        bias=None if a.bias is None else a.bias.float().contiguous(),
        seeds=None if greedy else a.seeds.contiguous(),
        steps=None if greedy else a.steps.contiguous(),
        tokens=tokens,
        logprobs=logprobs,
        vocabulary=u.shape[1],
        stride=u.stride(0),
        inverse_temperature=1.0 if greedy else 1 / a.temperature,
        softcap=a.softcap,
    )
    return tokens, logprobs
