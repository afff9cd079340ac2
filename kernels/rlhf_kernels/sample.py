"""Sampling of the next token straight from hidden states; the (N, V) logits need not exist all at once.

Here: the projection, the draw and its log-prob. Not here: top-k and top-p, which need all logits of a row.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_kernels import extension
from rlhf_kernels.checks import accumulation_dtype, check_shape
from rlhf_kernels.extension import address, native
from rlhf_kernels.logprobs.native import supports as logprobs_supports
from rlhf_kernels.logprobs.reference import Projection
from rlhf_kernels.op import Backend, Op
from rlhf_kernels.triton_support import in_triton

__all__ = ["Sampled", "sample", "sample_is_fused"]


class Sampled(NamedTuple):
    """A token for each row, and its log-prob."""

    tokens: Tensor  # (N,) int64
    logprobs: Tensor  # (N,) f32 | f64


class Arguments(NamedTuple):
    """Results: tokens (N,) int64, and log-probs (N,) in the precision of the sums."""

    hidden: Tensor  # (N, H)
    weight: Tensor  # (V, H)
    bias: Tensor | None  # (V,)
    softcap: float | None
    temperature: float
    seeds: Tensor  # (N,)
    steps: Tensor  # (N,)


def sample(
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    *,
    bias: Tensor | None = None,  # (V,)
    softcap: float | None = None,
    temperature: float,
    seeds: Tensor,  # (N,)
    steps: Tensor,  # (N,)
    backend: str | None = None,
) -> Sampled:
    """A draw from softmax(z), z = softcap(h W^T + b) / temperature, for each row; temperature 0 takes the likeliest.

    The token is argmax z + g with Gumbel noise g (Gumbel 1954), a hash of the row's seed, its step and the token: the
    same for the same int64 `seeds` and `steps`, whatever the other rows. All backends use one hash, so that they choose
    one token but for rounding of near ties; ties go to the smaller id. The log-prob is under softmax(z), at temperature
    0 under softmax(softcap(h W^T + b)). The noise has 31 bits: tokens of probability below 1e-9 come up too rarely.

    Floats of any precision; products are accumulated and kept in float32 (float64 where an input is float64). Nothing
    is mutated and no gradient flows. Raises ValueError or TypeError for shapes, dtypes or numbers that do not fit, and
    for a chosen backend that cannot run.

    `backend` is "native" (C++, CPU, hidden and weight both bfloat16 or both float32; no logits are stored), "triton"
    (CUDA, operands of one precision up to float32; all logits exist once) or "reference" (torch); None takes
    RLHF_FAST_BACKEND from the environment, else the first that can.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1] or weight.shape[0] == 0:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)} and weight {tuple(weight.shape)}, expected (N, H) and (V, H) with "
            "V at least 1: flatten the leading dimensions of hidden first"
        )
    if bias is not None:
        check_shape("bias", bias, (weight.shape[0],))
    for name, column in (("seeds", seeds), ("steps", steps)):
        check_shape(name, column, (hidden.shape[0],))
        if column.dtype != torch.int64:
            raise TypeError(f"{name} has dtype {column.dtype}, expected int64: convert it with .long()")
    if not (0 <= temperature < math.inf):
        raise ValueError(f"temperature is {temperature}, expected 0 (the likeliest token) or a positive number")
    if softcap is not None and not (0 < softcap < math.inf):
        raise ValueError(f"softcap is {softcap}, expected a positive number, or None for none")
    bias = None if bias is None else bias.detach()
    a = Arguments(hidden.detach(), weight.detach(), bias, softcap, float(temperature), seeds, steps)
    return Sampled(*SAMPLE(a, backend))


def sample_is_fused(weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `sample` with this weight and hidden states of its dtype runs in a backend that converts no weight."""
    none = torch.empty(0, dtype=torch.int64, device=weight.device)
    return SAMPLE.is_fused(Arguments(weight[:0], weight, bias, None, 1.0, none, none))


# The specification: all logits of all rows, and the Gumbel-max trick with noise from a hash


def _reference(a: Arguments) -> tuple[Tensor, Tensor]:
    precision = accumulation_dtype(a.hidden, a.weight)
    logits, _ = Projection(a.weight, a.bias, a.temperature or 1.0, a.softcap, precision)(a.hidden)  # (N, V)
    scores = logits if a.temperature == 0 else logits - exponential(a.seeds, a.steps, a.weight.shape[0]).log()
    tokens = scores.argmax(1)
    return tokens, logits.log_softmax(1).gather(1, tokens[:, None]).squeeze(1)


def exponential(seeds: Tensor, steps: Tensor, vocabulary: int) -> Tensor:
    """(N, V) f64: exponential variates, of which `hash_bits` gives 31 bits: -log(1 - v), v = (bits + 1/2) / 2^31."""
    v = ((hash_bits(seeds, steps, vocabulary) >> 1).double() + 0.5) / (1 << 31)
    return -torch.log1p(-v)


def hash_bits(seeds: Tensor, steps: Tensor, vocabulary: int) -> Tensor:
    """(N, V) int64 holding 32 bits, a function of (seed, step, token).

    Seed and step give a key by SplitMix64 (Steele et al. 2014); its halves enter before and between two rounds of
    lowbias32 (Wellons 2018) over the token. For a given key all tokens differ.
    """
    key = _mix64(_mix64(seeds * _GOLDEN + 0x632BE59BD9B4E019) + steps * _GOLDEN)
    tokens = torch.arange(vocabulary, device=seeds.device)
    x = _mix32((tokens + (key & _LOW)[:, None]) & _LOW)
    return _mix32((x + _shift(key, 32)[:, None]) & _LOW)


def _signed(x: int) -> int:
    """64 bits as torch's int64 holds them; its products and sums wrap around."""
    return x - (1 << 64) if x >> 63 else x


_LOW = (1 << 32) - 1
_GOLDEN = _signed(0x9E3779B97F4A7C15)


def _shift(x: Tensor, bits: int) -> Tensor:
    """A shift to the right that brings in zeros."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix64(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _mix32(x: Tensor) -> Tensor:
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _LOW
    x = ((x ^ (x >> 15)) * 0xD35A2D97) & _LOW
    return x ^ (x >> 15)


# C++: a tile of float32 logits at a time, which joins the softmax's statistics and the race of the draw. A row's result
# depends on neither the other rows nor the number of threads.


def _native_cannot_take(a: Arguments) -> str | None:
    """It reads weights as `linear_logprobs` does."""
    if a.weight.shape[0] >= 1 << 31:
        return f"the vocabulary has {a.weight.shape[0]} entries, and it counts them in 31 bits"
    return logprobs_supports(a)


def _native(a: Arguments) -> tuple[Tensor, Tensor]:
    tokens = torch.empty(a.hidden.shape[0], dtype=torch.int64)
    logprobs = torch.empty(a.hidden.shape[0])
    hidden, seeds, steps = a.hidden.contiguous(), a.seeds.contiguous(), a.steps.contiguous()
    bias = None if a.bias is None else a.bias.float().contiguous()
    greedy = a.temperature == 0
    native.sample(
        hidden=hidden.data_ptr(),
        hidden_stride=hidden.stride(0),
        weight=a.weight.data_ptr(),
        weight_stride=a.weight.stride(0),
        bias=address(bias),
        seeds=0 if greedy else seeds.data_ptr(),
        steps=0 if greedy else steps.data_ptr(),
        rows=hidden.shape[0],
        vocabulary=a.weight.shape[0],
        hidden_size=hidden.shape[1],
        temperature=1.0 if greedy else a.temperature,
        softcap=a.softcap or 0.0,
        bf16=hidden.dtype == torch.bfloat16,
        level=extension.LEVEL,
        tokens=tokens.data_ptr(),
        logprobs=logprobs.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return tokens, logprobs


def _fake(a: Arguments) -> tuple[Tensor, Tensor]:
    rows = a.hidden.shape[0]
    return a.seeds.new_empty(rows), a.hidden.new_empty(rows, dtype=accumulation_dtype(a.hidden, a.weight))


SAMPLE = Op(
    "sample",
    Arguments,
    "(Tensor, Tensor)",
    fake=_fake,
    backends={
        "native": Backend(_native, _native_cannot_take),
        "triton": in_triton("rlhf_kernels.sample_triton", "sample"),
        "reference": Backend(_reference),
    },
)
