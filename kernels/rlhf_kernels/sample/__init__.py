"""Sampling of the next token straight from hidden states; the (N, V) logits need not exist all at once.

Here: the projection, the draw and its log-prob. Not here: top-k and top-p, which need all logits of a row.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_kernels import backends
from rlhf_kernels.checks import check_shape
from rlhf_kernels.sample import op

__all__ = ["Sampled", "sample", "sample_is_fused"]


class Sampled(NamedTuple):
    """A token for each row, and its log-prob."""

    tokens: Tensor  # (N,) int64
    logprobs: Tensor  # (N,) f32 | f64


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
    operands = (None if x is None else x.detach() for x in (hidden, weight, bias))
    return Sampled(*op.sample(*operands, softcap, float(temperature), seeds, steps, backend))


def sample_is_fused(weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `sample` with this weight and hidden states of its dtype runs in a backend that converts no weight."""
    return backends.is_fused("sample", {"hidden": weight[:0], "weight": weight, "bias": bias})
