"""Packed attention in plain torch: the scores of one sequence at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from rlhf_kernels.precision import wide


def _heads(x: Tensor, groups: int = 1) -> Tensor:
    """(L, heads, D) -> (heads * groups, L, D)"""
    return wide(x).transpose(0, 1).repeat_interleave(groups, 0)


def _scores(q: Tensor, k: Tensor, scale: float, window: int | None) -> Tensor:
    position = torch.arange(q.shape[1], device=q.device)
    distance = position[:, None] - position
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    return (scale * q @ k.transpose(1, 2)).masked_fill(hidden, -torch.inf)


def _sequences(offsets: list[int]) -> Iterator[slice]:
    return (slice(start, stop) for start, stop in pairwise(offsets) if stop > start)


def packed_attention(
    *, q: Tensor, k: Tensor, v: Tensor, offsets: list[int], scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """The specification of `rlhf_kernels.packed_attention`, and each query's log sum e^score (heads, T)."""
    out, groups = torch.empty(q.shape, dtype=q.dtype, device=q.device), q.shape[1] // k.shape[1]
    log_sum = wide(q).new_empty(q.shape[1], q.shape[0])
    for rows in _sequences(offsets):
        scores = _scores(_heads(q[rows]), _heads(k[rows], groups), scale, window)
        log_sum[:, rows] = scores.logsumexp(-1)
        out[rows] = (scores.softmax(-1) @ _heads(v[rows], groups)).transpose(0, 1).to(q.dtype)
    return out, log_sum


def packed_attention_backward(
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sum: Tensor,
    d_out: Tensor,
    offsets: list[int],
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv, in the dtype of q."""
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    groups = q.shape[1] // k.shape[1]
    for rows in _sequences(offsets):
        queries, keys, values = _heads(q[rows]), _heads(k[rows], groups), _heads(v[rows], groups)
        d_rows = _heads(d_out[rows])
        shares = (_scores(queries, keys, scale, window) - log_sum[:, rows, None]).exp()
        dots = (d_rows * _heads(out[rows])).sum(-1, keepdim=True)
        d_scores = scale * shares * (d_rows @ values.transpose(1, 2) - dots)
        dq[rows] = (d_scores @ keys).transpose(0, 1).to(q.dtype)
        for into, gradient in ((dk, d_scores.transpose(1, 2) @ queries), (dv, shares.transpose(1, 2) @ d_rows)):
            into[rows] = gradient.unflatten(0, (-1, groups)).sum(1).transpose(0, 1).to(q.dtype)
    return dq, dk, dv
