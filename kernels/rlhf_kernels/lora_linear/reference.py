"""The linear layer with adapters in plain torch: two large products, and four small ones for each adapter.

A is scaled and both factors are cast to x's dtype once, in the forward: `factors` holds them one after the other, A
(R, K), then B (N, R). `inner` (M, R) holds x (scale A)^T, a group's in as many columns as its adapter has ranks, and 0
elsewhere.

Where one adapter serves every row, as in training, nothing is cut out or filled: on a GPU the forward is 5 launches
(two casts, x W^T, x A^T, and the product with B added in place), the backward 7.
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
    factors, adapters = cast_factors(x, lora_a, lora_b, scale)
    ranks, served = [a.shape[0] for a in lora_a], list(groups(slots, rows))
    written = sum(ranks[slot] * (at.stop - at.start) for slot, at in served)
    inner = x.new_empty(x.shape[0], max(ranks))
    if written < inner.numel():
        inner.zero_()
    y = F.linear(x, weight, bias)
    for slot, at in served:
        a, b = adapters[slot]
        u = cut(inner, at, ranks[slot])
        torch.mm(cut(x, at), a.t(), out=u)
        cut(y, at).addmm_(u, b.t())
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
    da: list[Tensor | None] = [None for _ in ranks]
    db: list[Tensor | None] = [None for _ in ranks]
    for slot, at in groups(slots, rows):
        (a, b), u, x_group, dy_group = adapters[slot], cut(inner, at, ranks[slot]), cut(x, at), cut(dy, at)
        v = dy_group @ b
        if x_gradient:
            cut(dx, at).addmm_(v, a)
        if adapter_gradients:
            d_a = torch.empty_like(a).addmm_(v.t(), x_group, beta=0, alpha=scale[slot])
            _accumulate(da, slot, d_a.to(lora_a[slot].dtype))
            _accumulate(db, slot, torch.empty_like(lora_b[slot]).copy_((u.t() @ dy_group).t()))
    d_weight = dy.t() @ x if weight_gradient else empty(0)
    d_bias = dy.sum(0) if bias_gradient else empty(0)
    return dx, d_weight, d_bias, _or_empty(da, lora_a), _or_empty(db, lora_b)


def _accumulate(gradients: list[Tensor | None], slot: int, gradient: Tensor) -> None:
    """Several groups may share an adapter."""
    so_far = gradients[slot]
    gradients[slot] = gradient if so_far is None else so_far.add_(gradient)


def _or_empty(gradients: list[Tensor | None], factors: Sequence[Tensor]) -> list[Tensor]:
    return [t.new_empty(0) if d is None else d for d, t in zip(gradients, factors, strict=True)]
