"""The linear layer with adapters in plain torch: two large products, and four small ones for each adapter.

A is scaled and both factors are cast to x's dtype once, in the forward: `factors` holds them one after the other, A
(R, K), then B (N, R). `inner` (M, R) holds x (scale A)^T, a group's in as many columns as its adapter has ranks, and 0
elsewhere.

Where one adapter serves every row, as in training, nothing is cut out or filled: on a GPU the forward is 5 launches
(two casts, x W^T, x A^T, and the product with B added in place), the backward 7.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Arguments(NamedTuple):
    """Results: y (M, N), and for the backward pass `inner` (M, R) and `factors`."""

    x: Tensor  # (M, K)
    weight: Tensor  # (N, K)
    bias: Tensor | None  # (N,)
    lora_a: list[Tensor]  # (R_s, K) each
    lora_b: list[Tensor]  # (N, R_s) each
    scale: list[float]
    slots: list[int]  # of the groups
    rows: list[int]  # of the groups


class BackwardArguments(NamedTuple):
    """Results: dx, dweight, dbias, and dA and dB of each adapter; empty where none is asked for or no row is served."""

    x: Tensor
    weight: Tensor
    inner: Tensor
    factors: Tensor
    lora_a: list[Tensor]
    lora_b: list[Tensor]
    scale: list[float]
    slots: list[int]
    rows: list[int]
    dy: Tensor  # (M, N)
    x_gradient: bool
    weight_gradient: bool
    bias_gradient: bool
    adapter_gradients: bool


def groups(slots: Sequence[int], rows: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Slot and rows of each group that has both."""
    start = 0
    for slot, count in zip(slots, rows, strict=True):
        if slot >= 0 and count > 0:
            yield slot, slice(start, start + count)
        start += count


def split(factors: Tensor, ranks: Sequence[int], k: int, n: int) -> list[tuple[Tensor, Tensor]]:
    """(A, B) of each adapter."""
    adapters, start = [], 0
    for rank in ranks:
        a = factors.as_strided((rank, k), (k, 1), start)
        b = factors.as_strided((n, rank), (rank, 1), start + rank * k)
        adapters.append((a, b))
        start += rank * (k + n)
    return adapters


def cast_factors(
    x: Tensor, lora_a: Sequence[Tensor], lora_b: Sequence[Tensor], scale: Sequence[float]
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """`factors` for x's dtype, and (A, B) of each adapter in them."""
    n, k, ranks = lora_b[0].shape[0], x.shape[1], [a.shape[0] for a in lora_a]
    factors = x.new_empty(sum(ranks) * (k + n))
    adapters = split(factors, ranks, k, n)
    for (a, b), a_given, b_given, s in zip(adapters, lora_a, lora_b, scale, strict=True):
        torch.mul(a_given, s, out=a)
        b.copy_(b_given)
    return factors, adapters


def cut(x: Tensor, at: slice, columns: int | None = None) -> Tensor:
    """The rows of a group, the first `columns` of each: x itself where that is all of it."""
    part = x if at.stop - at.start == x.shape[0] else x[at]
    return part if columns in (None, part.shape[1]) else part[:, :columns]


def lora_linear(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """The specification of `rlhf_kernels.lora_linear`."""
    factors, adapters = cast_factors(a.x, a.lora_a, a.lora_b, a.scale)
    ranks, served = [A.shape[0] for A in a.lora_a], list(groups(a.slots, a.rows))
    written = sum(ranks[slot] * (at.stop - at.start) for slot, at in served)
    inner = a.x.new_empty(a.x.shape[0], max(ranks))
    if written < inner.numel():
        inner.zero_()
    y = F.linear(a.x, a.weight, a.bias)
    for slot, at in served:
        A, B = adapters[slot]
        u = cut(inner, at, ranks[slot])
        torch.mm(cut(a.x, at), A.t(), out=u)
        cut(y, at).addmm_(u, B.t())
    return y, inner, factors


def lora_linear_backward(a: BackwardArguments) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Each group's part in dx, dA and dB is added to the others'."""
    (n, k), ranks = a.weight.shape, [A.shape[0] for A in a.lora_a]
    adapters, empty = split(a.factors, ranks, k, n), a.x.new_empty
    dx = a.dy @ a.weight if a.x_gradient else empty(0)
    d_a: list[Tensor | None] = [None for _ in ranks]
    d_b: list[Tensor | None] = [None for _ in ranks]
    for slot, at in groups(a.slots, a.rows):
        (A, B), u, x, dy = adapters[slot], cut(a.inner, at, ranks[slot]), cut(a.x, at), cut(a.dy, at)
        v = dy @ B
        if a.x_gradient:
            cut(dx, at).addmm_(v, A)
        if a.adapter_gradients:
            own = torch.empty_like(A).addmm_(v.t(), x, beta=0, alpha=a.scale[slot])
            _accumulate(d_a, slot, own.to(a.lora_a[slot].dtype))
            _accumulate(d_b, slot, torch.empty_like(a.lora_b[slot]).copy_((u.t() @ dy).t()))
    d_weight = a.dy.t() @ a.x if a.weight_gradient else empty(0)
    d_bias = a.dy.sum(0) if a.bias_gradient else empty(0)
    return dx, d_weight, d_bias, _or_empty(d_a, a.lora_a), _or_empty(d_b, a.lora_b)


def _accumulate(gradients: list[Tensor | None], slot: int, gradient: Tensor) -> None:
    """Several groups may share an adapter."""
    so_far = gradients[slot]
    gradients[slot] = gradient if so_far is None else so_far.add_(gradient)


def _or_empty(gradients: list[Tensor | None], factors: Sequence[Tensor]) -> list[Tensor]:
    return [t.new_empty(0) if d is None else d for d, t in zip(gradients, factors, strict=True)]
