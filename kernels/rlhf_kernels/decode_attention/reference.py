"""Decode attention in plain torch: the scores of all positions of the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kernels.precision import wide


def decode_attention(
    *,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """The specification of `rlhf_kernels.decode_attention`."""
    rows, (heads, kv_heads) = q.shape[0], (q.shape[1], keys.shape[1])
    k, v = (wide(x[:rows]).repeat_interleave(heads // kv_heads, 1) for x in (keys, values))  # (B, heads, L, D)
    scores = scale * (wide(q)[:, :, None] @ k.transpose(2, 3))[:, :, 0]  # (B, heads, L)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    position = torch.arange(keys.shape[2], device=q.device)
    seen = position < lengths[:, None]
    if window is not None:
        seen &= position >= lengths[:, None] - window
    shares = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    return (shares[:, :, None] @ v)[:, :, 0].to(q.dtype)
