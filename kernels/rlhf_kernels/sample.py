"""Sampling of the next token straight from hidden states; the (N, V) logits need not exist all at once.

Here: the projection, the draw and its log-prob; top-k and top-p too, which need all logits of a row and are the
reference's. `Sampler` is for many draws with one output embedding.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_kernels import extension
from rlhf_kernels.checks import accumulation_dtype, check_shape
from rlhf_kernels.extension import address, native
from rlhf_kernels.logprobs.native import refusal as logprobs_refusal
from rlhf_kernels.logprobs.reference import Projection
from rlhf_kernels.op import Backend, NoLoss, Op
from rlhf_kernels.triton_support import in_triton

__all__ = ["Sampled", "Sampler", "sample"]


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
    top_k: int = 0  # off
    top_p: float = 1.0  # off


def sample(
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    *,
    bias: Tensor | None = None,  # (V,)
    softcap: float | None = None,
    temperature: float,
    seeds: Tensor,  # (N,)
    steps: Tensor,  # (N,)
    top_k: int = 0,
    top_p: float = 1.0,
    backend: str | None = None,
) -> Sampled:
    """A draw from softmax(z), z = softcap(h W^T + b) / temperature, for each row; temperature 0 takes the likeliest.

    top_k (0: off) leaves the k largest z of a row, and those equal to the last of them; top_p (1: off) of what is left
    the fewest of the likeliest whose probability is at least p (Holtzman et al. 2020). The noise of a token is the same
    with them and without, so that a draw that they leave standing stays.

    The token is argmax z + g with Gumbel noise g (Gumbel 1954), a hash of the row's seed, its step and the token: the
    same for the same int64 `seeds` and `steps`, whatever the other rows. All backends use one hash, so that they choose
    one token but for rounding of near ties; ties go to the smaller id. The log-prob is under softmax(z) of all tokens,
    at temperature 0 under softmax(softcap(h W^T + b)). The noise has 31 bits: tokens of probability below 1e-9 come up
    too rarely.

    Floats of any precision; products are accumulated and kept in float32 (float64 where an input is float64). Nothing
    is mutated and no gradient flows. Raises ValueError or TypeError for shapes, dtypes or numbers that do not fit, and
    for a chosen backend that cannot run.

    `backend` is "native" (C++, CPU, hidden and weight both bfloat16 or both float32; no logits are stored), "triton"
    (CUDA, operands of one precision up to float32; all logits exist once) or "reference" (torch), which alone takes
    top_k and top_p; None takes RLHF_FAST_BACKEND from the environment, else the first that can.
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
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}, expected 0 (off) or more")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}, expected a number above 0 and at most 1 (off)")
    filters = _filters(top_k, top_p, temperature, weight.shape[0])
    bias = None if bias is None else bias.detach()
    a = Arguments(hidden.detach(), weight.detach(), bias, softcap, float(temperature), seeds, steps, *filters)
    return Sampled(*SAMPLE(a, backend))


def _filters(top_k: int, top_p: float, temperature: float, vocabulary: int) -> tuple[int, float]:
    """top_k and top_p, off where they leave every token out of which one could be drawn."""
    if temperature == 0:  # the likeliest passes every filter
        return 0, 1.0
    return (int(top_k) if top_k < vocabulary else 0), float(top_p)


class Sampler:
    """`sample` for many calls with one output embedding: what its backend would convert at each is converted once."""

    def __init__(
        self,
        weight: Tensor,  # (V, H)
        bias: Tensor | None = None,  # (V,)
        *,
        softcap: float | None = None,
        temperature: float,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> None:
        """Numbers as `sample` takes them, and checked at the first draw."""
        self.bias = None if bias is None else bias.float()
        self.settings: dict[str, Any] = {"softcap": softcap, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        none = torch.empty(0, dtype=torch.int64, device=weight.device)
        filters = _filters(top_k, top_p, temperature, weight.shape[0])
        a = Arguments(weight[:0], weight, self.bias, softcap, temperature, none, none, *filters)
        self.weight = weight if SAMPLE.fused_backend(a) else weight.to(accumulation_dtype(weight))

    def __call__(self, hidden: Tensor, seeds: Tensor, steps: Tensor) -> Sampled:
        """A draw for each of the hidden states (N, H), by seeds and steps (N,) int64."""
        hidden = hidden.to(self.weight.dtype)
        return sample(hidden, self.weight, bias=self.bias, seeds=seeds, steps=steps, **self.settings)


# The specification: all logits of all rows, and the Gumbel-max trick with noise from a hash


def _reference(a: Arguments) -> tuple[Tensor, Tensor]:
    precision = accumulation_dtype(a.hidden, a.weight)
    logits, _ = Projection(a.weight, a.bias, a.temperature or 1.0, a.softcap, precision)(a.hidden)  # (N, V)
    scores = filtered(logits, a.top_k, a.top_p)
    if a.temperature > 0:
        scores = scores - exponential(a.seeds, a.steps, a.weight.shape[0]).log()
    tokens = scores.argmax(1)
    return tokens, logits.log_softmax(1).gather(1, tokens[:, None]).squeeze(1)


def filtered(z: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits (N, V) with -inf for the tokens that top-k, then top-p leaves out."""
    if top_k:
        z = z.masked_fill(z < z.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        ordered, order = z.sort(descending=True, stable=True)
        p = ordered.softmax(-1)
        z = torch.empty_like(z).scatter_(1, order, ordered.masked_fill(p.cumsum(-1) - p >= top_p, -torch.inf))
    return z


def needs_all_logits(a: Arguments) -> NoLoss | None:
    """Why a backend that meets the logits of a row one after another cannot take these arguments, or None."""
    return NoLoss("top-k and top-p need all logits of a row at once") if a.top_k or a.top_p < 1 else None


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


def _native_refusal(a: Arguments) -> str | None:
    """It reads weights as `linear_logprobs` does."""
    if a.weight.shape[0] >= 1 << 31:
        return f"the vocabulary has {a.weight.shape[0]} entries, and it counts them in 31 bits"
    return needs_all_logits(a) or logprobs_refusal(a)


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
        "native": Backend(_native, _native_refusal),
        "triton": in_triton("rlhf_kernels.sample_triton", "sample"),
        "reference": Backend(_reference),
    },
)
