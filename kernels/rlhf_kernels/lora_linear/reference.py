"""The linear layer with adapters in plain torch: two large products, and four small ones for each adapter.

A is scaled and both factors are cast to x's dtype once, in the forward: `factors` holds them one after the other, A
(R, K), then B (N, R). `inner` (M, R) holds x (scale A)^T, a group's in as
many columns as its adapter has ranks, and 0 elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def groups(slots: Sequence[int], rows: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Slot and rows of each group that has both."""
    start = 0
    for slot, count in zip(slots, rows, strict=True):
        if slot >= 0 and count > 0:
            yield slot, slice(start, start + count)
        start += count


def split(factors: Tensor, ranks: Sequence[int], k: int, n: int) -> list[tuple[Tensor, Tensor]]:
    """(A, B) of each adapter."""
    parts = factors.split([size * rank for rank in ranks for size in (k, n)])
    return [(a.view(rank, k), b.view(n, rank)) for a, b, rank in zip(parts[::2], parts[1::2], ranks, strict=True)]


def cast_factors(x: Tensor, lora_a: Sequence[Tensor], lora_b: Sequence[Tensor], scale: Sequence[float]) -> Tensor:
    """`factors` for x's dtype."""
    n, k, ranks = lora_b[0].shape[0], x.shape[1], [a.shape[0] for a in lora_a]
    factors = x.new_empty(sum(ranks) * (k + n))
    for (a, b), a_given, b_given, s in zip(split(factors, ranks, k, n), lora_a, lora_b, scale, strict=True):
        a.copy_(a_given * s)
        b.copy_(b_given)
    return factors


def lora_linear(
    *,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Sequence[Tensor],
    lora_b: Sequence[Tensor],
    scale: Sequence[float],
    slots: Sequence[int],
    rows: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """The specification of `rlhf_kernels.lora_linear`, and `inner` and `factors` for the backward."""
    (n, k), ranks = weight.shape, [a.shape[0] for a in lora_a]
    factors, inner = cast_factors(x, lora_a, lora_b, scale), x.new_zeros(x.shape[0], max(ranks))
    adapters = split(factors, ranks, k, n)
    y = F.linear(x, weight, bias)
    for slot, at in groups(slots, rows):
        a, b = adapters[slot]
        u = inner[at, : ranks[slot]]
        torch.mm(x[at], a.t(), out=u)
        y[at].addmm_(u, b.t())
    return y, inner, factors


def lora_linear_backward(
    *,
    x: Tensor,
    weight: Tensor,
    inner: Tensor,
    factors: Tensor,
    lora_a: Sequence[Tensor],  # for their dtypes and ranks
    lora_b: Sequence[Tensor],
    scale: Sequence[float],
    slots: Sequence[int],
    rows: Sequence[int],
    dy: Tensor,
    x_gradient: bool,
    weight_gradient: bool,
    bias_gradient: bool,
    adapter_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    """dx, dweight, dbias, and dA and dB of each adapter; empty where none is asked for or no row is served."""
    (n, k), ranks = weight.shape, [a.shape[0] for a in lora_a]
    adapters, empty = split(factors, ranks, k, n), x.new_empty
    dx = dy @ weight if x_gradient else empty(0)
    da, db = ([t.new_empty(0) for t in side] for side in (lora_a, lora_b))
    for slot, at in groups(slots, rows):
        (a, b), u = adapters[slot], inner[at, : ranks[slot]]
        v = dy[at] @ b
        if x_gradient:
            dx[at].addmm_(v, a)
        if adapter_gradients:
            _accumulate(da, slot, (v.t() @ x[at]).to(da[slot].dtype).mul_(scale[slot]))
            _accumulate(db, slot, torch.empty_like(lora_b[slot]).copy_((u.t() @ dy[at]).t()))
    d_weight = dy.t() @ x if weight_gradient else empty(0)
    return dx, d_weight, dy.sum(0) if bias_gradient else empty(0), da, db


def _accumulate(gradients: list[Tensor], slot: int, gradient: Tensor) -> None:
    """Several groups may share an adapter."""
    gradients[slot] = gradients[slot].add_(gradient) if gradients[slot].numel() else gradient
