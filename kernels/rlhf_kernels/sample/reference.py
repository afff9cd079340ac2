"""Sampling in plain torch: all logits of all rows, and the Gumbel-max trick with noise from a hash."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kernels.logprobs.reference import Projection
from rlhf_kernels.precision import accumulation_dtype


def sample(
    *,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    temperature: float,
    seeds: Tensor,
    steps: Tensor,
) -> tuple[Tensor, Tensor]:
    """The specification of `rlhf_kernels.sample`; arguments are taken as checked."""
    project = Projection(weight, bias, temperature or 1.0, softcap, accumulation_dtype(hidden, weight))
    logits, _ = project(hidden)  # (N, V)
    scores = logits if temperature == 0 else logits - exponential(seeds, steps, weight.shape[0]).log()
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
