"""Attention of one new token for each of several sequences to the keys and values that a cache holds.

Here: soft-max attention with grouped keys and values, a length for each row, a sliding window and a soft-cap. Not here:
the cache itself, and attention of many tokens (`packed_attention`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_kernels.checks import check_same_dtype, check_shape, wide
from rlhf_kernels.op import Backend, Op
from rlhf_kernels.packed_attention import attend
from rlhf_kernels.triton_support import in_triton

__all__ = ["decode_attention"]


class Arguments(NamedTuple):
    q: Tensor  # (B, heads, D)
    keys: Tensor  # (B or more, kv_heads, L, D)
    values: Tensor  # as keys
    lengths: Tensor  # (B,)
    scale: float
    window: int | None
    softcap: float | None


def decode_attention(
    q: Tensor,  # (B, heads, D)
    keys: Tensor,  # (B or more, kv_heads, L, D)
    values: Tensor,  # (B or more, kv_heads, L, E)
    lengths: Tensor,  # (B,) int64
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    longest: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """softmax(softcap(scale q k^T)) v -> (B, heads, E): row b attends to positions 0 .. lengths[b] - 1 of row b of the
    cache, the last `window` of them where a window is given.

    lengths are 1 to L, read on the device: nothing waits for it. All floats share a dtype; scores and sums are float32
    (float64 for float64). No gradient flows; nothing is mutated. `backend` is "triton" (CUDA; heads of up to 256
    entries, 64 in float32) or "reference"; None as everywhere.

    Where only the reference could run, and none is asked for, and where E is not D, torch's attention runs over
    positions 0 .. longest - 1 (default: L), the most that a row has, which the host has to know. So it raises
    RuntimeError while a CUDA graph is captured, which would keep to that number. Raises ValueError or TypeError for
    shapes and dtypes that do not fit, and for a backend that cannot run.
    """
    if q.dim() != 3 or keys.dim() != 4 or keys.shape[1] == 0 or q.shape[1] % keys.shape[1]:
        raise ValueError(
            f"q has shape {tuple(q.shape)} and keys {tuple(keys.shape)}, expected (B, heads, D) and "
            "(B or more, kv_heads, L, D) with heads a multiple of kv_heads"
        )
    if keys.shape[0] < q.shape[0] or keys.shape[3] != q.shape[2]:
        raise ValueError(
            f"keys has shape {tuple(keys.shape)}, expected {q.shape[0]} rows or more of {q.shape[2]} entries"
        )
    check_shape("values", values, (*keys.shape[:3], values.shape[-1]))
    check_shape("lengths", lengths, (q.shape[0],))
    check_same_dtype(q=q, keys=keys, values=values)
    a = Arguments(q.detach(), keys, values, lengths, scale, window, softcap)
    of_backends = values.shape == keys.shape
    if backend is None and not (of_backends and DECODE_ATTENTION.fused_backend(a)):
        return _to_the_longest(a, keys.shape[2] if longest is None else longest)
    if not of_backends:
        raise ValueError(
            f"backend is {backend!r}, and no backend takes keys of {keys.shape[3]} and values of {values.shape[3]} "
            "entries: leave it None"
        )
    return DECODE_ATTENTION(a, backend)


def _to_the_longest(a: Arguments, longest: int) -> Tensor:
    """Torch's own attention, over the positions of the longest row."""
    if a.q.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"decode attention of heads of {a.q.shape[2]} {a.q.dtype} has no kernel here, and looks as far as the "
            "longest sequence is now"
        )
    position = torch.arange(longest, device=a.q.device)
    seen = position < a.lengths[:, None]
    if a.window is not None:
        seen &= position >= a.lengths[:, None] - a.window
    k, v = (x[: len(a.q), :, :longest] for x in (a.keys, a.values))
    return attend(a.q[:, :, None], k, v, a.scale, seen[:, None, None], a.softcap, causal=False)[:, :, 0]


def _reference(a: Arguments) -> Tensor:
    """The specification: the scores of all positions of the cache."""
    q, keys = a.q, a.keys
    rows, groups = q.shape[0], q.shape[1] // keys.shape[1]
    k, v = (wide(x[:rows]).repeat_interleave(groups, 1) for x in (keys, a.values))  # (B, heads, L, D)
    scores = a.scale * (wide(q)[:, :, None] @ k.transpose(2, 3))[:, :, 0]  # (B, heads, L)
    if a.softcap is not None:
        scores = torch.tanh(scores / a.softcap) * a.softcap
    position = torch.arange(keys.shape[2], device=q.device)
    seen = position < a.lengths[:, None]
    if a.window is not None:
        seen &= position >= a.lengths[:, None] - a.window
    shares = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    return (shares[:, :, None] @ v)[:, :, 0].to(q.dtype)


DECODE_ATTENTION = Op(
    "decode_attention",
    Arguments,
    "Tensor",
    fake=lambda a: a.q.new_empty(a.q.shape),
    backends={
        "triton": in_triton("rlhf_kernels.decode_attention_triton", "decode_attention"),
        "reference": Backend(_reference),
    },
)
