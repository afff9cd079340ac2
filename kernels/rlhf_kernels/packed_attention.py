"""Causal attention within sequences that lie side by side, without padding, and its gradient.

Here: soft-max attention with grouped keys and values and a sliding window, as the specification in torch; in C++, a
block of queries against all of its keys while both are in cache; and on a GPU by the flash attention that comes with
torch. What none of these takes (a soft-cap, values of another size than keys) is computed by torch's own attention, in
a call for each sequence. Not here: caches and decoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rlhf_kernels.checks import accumulation_dtype, check_same_dtype, check_shape, to_device, wide
from rlhf_kernels.extension import compute, layer_refusal, native, strided, with_contiguous_heads
from rlhf_kernels.op import Backend, Gradient, Op

__all__ = ["packed_attention"]

LARGEST_FLASH_HEAD = 256


class Arguments(NamedTuple):
    """Results: the attended values as q, and each query's log sum e^score (heads, T), float32 (float64 for float64)."""

    q: Tensor  # (T, heads, D)
    k: Tensor  # (T, kv_heads, D)
    v: Tensor  # (T, kv_heads, D)
    offsets: list[int]  # (B+1,)
    scale: float
    window: int | None


class BackwardArguments(NamedTuple):
    """Results: dq, dk and dv, in the dtype of q."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor  # as q
    log_sum: Tensor  # (heads, T)
    d_out: Tensor  # as q
    offsets: list[int]
    scale: float
    window: int | None


def packed_attention(
    q: Tensor,  # (T, heads, D)
    k: Tensor,  # (T, kv_heads, D)
    v: Tensor,  # (T, kv_heads, E)
    offsets: Sequence[int],  # (B+1,)
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """softmax(softcap(scale q k^T)) v -> (T, heads, E): token i of a sequence attends to its tokens 0..i, the last
    `window` of them where a window is given (itself included).

    Tokens offsets[b] .. offsets[b+1] are sequence b; one may be empty. Query head h reads key and value head
    h // (heads / kv_heads). All share a dtype; scores and soft-max are float32 (float64 for float64).

    Differentiable in q, k and v. Memory beyond inputs and outputs: "native" (C++, CPU) keeps one float per token and
    head for the backward and needs scratch linear in the longest sequence; "flash" (CUDA, bfloat16 and float16: torch's
    flash attention) keeps the same float; "reference" (torch) holds the scores of a sequence. Nothing is mutated.

    Where only the reference could run, and none is asked for, torch's `scaled_dot_product_attention` does, in a call
    for each sequence, with what that keeps. So too where E is not D, and with a soft-cap (tanh(score / softcap) *
    softcap, as in Gemma 2; the scores are held): no backend takes these. Raises ValueError or TypeError for shapes,
    offsets and dtypes that do not fit, and for a backend that cannot run.
    """
    if q.dim() != 3 or k.dim() != 3 or k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"q has shape {tuple(q.shape)} and k {tuple(k.shape)}, expected (T, heads, D) and (T, kv_heads, D) with "
            "heads a multiple of kv_heads"
        )
    check_shape("k", k, (q.shape[0], k.shape[1], q.shape[2]))
    check_shape("v", v, (*k.shape[:2], v.shape[-1]))
    check_same_dtype(q=q, k=k, v=v)
    offsets = list(offsets)
    if not offsets or offsets[0] != 0 or offsets[-1] != q.shape[0] or offsets != sorted(offsets):
        raise ValueError(f"offsets is {offsets}, expected offsets that rise from 0 to the {q.shape[0]} tokens of q")
    if window is not None and window < 1:
        raise ValueError(f"window is {window}, expected at least 1, or None for all tokens before")
    a, of_backends = Arguments(q, k, v, offsets, scale, window), softcap is None and v.shape == k.shape
    if backend is None and not (of_backends and PACKED_ATTENTION.fused_backend(a)):
        return _by_sequence(a, softcap)
    if not of_backends:
        raise ValueError(
            f"backend is {backend!r}, and no backend takes softcap={softcap} with keys of {k.shape[2]} and values of "
            f"{v.shape[2]} entries: leave it None"
        )
    return PACKED_ATTENTION(a, backend)[0]


def attention_backend(q: Tensor, k: Tensor) -> str | None:
    """The backend in which `packed_attention` of these queries and keys attends all sequences in one call, or None: a
    call a sequence."""
    return PACKED_ATTENTION.fused_backend(Arguments(q, k, k, [], 1.0, None))


# Torch's own attention, differentiable by itself


def _by_sequence(a: Arguments, softcap: float | None) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (a.q, a.k, a.v))  # (1, heads, T, D)
    out = q.new_empty(*q.shape[:3], v.shape[3]) if not torch.is_grad_enabled() else None
    pieces = [q.new_empty(1, q.shape[1], 0, v.shape[3])]
    for rows in _sequences(a.offsets):
        mask = _window_mask(rows.stop - rows.start, a.window, q.device)
        piece = attend(q[:, :, rows], k[:, :, rows], v[:, :, rows], a.scale, mask, softcap, causal=True)
        if out is None:
            pieces.append(piece)
        else:
            out[:, :, rows] = piece
    return (torch.cat(pieces, dim=2) if out is None else out)[0].transpose(0, 1)


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    if window is None or length <= window:
        return None
    position = torch.arange(length, device=device)
    distance = position[:, None] - position
    return (distance >= 0) & (distance < window)


def attend(
    q: Tensor,  # (B, heads, Q, D)
    k: Tensor,  # (B, kv_heads, K, D)
    v: Tensor,  # (B, kv_heads, K, E)
    scale: float,
    mask: Tensor | None,  # True where a query may look; None: everywhere, or up to itself where `causal`
    softcap: float | None,
    *,
    causal: bool,
) -> Tensor:
    """softmax(softcap(scale q k^T)) v -> (B, heads, Q, E), in torch. The soft-cap comes before the mask."""
    if softcap is None:
        grouped = q.shape[1] != k.shape[1]
        return scaled_dot_product_attention(
            q, k, v, mask, is_causal=causal and mask is None, scale=scale, enable_gqa=grouped
        )
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.tanh((q.float() @ k.float().transpose(-1, -2)) * (scale / softcap)) * softcap
    if mask is None and causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ v.float()).to(q.dtype)


# The specification: the scores of one sequence at a time


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


def _reference(a: Arguments) -> tuple[Tensor, Tensor]:
    q, k, v, groups = a.q, a.k, a.v, a.q.shape[1] // a.k.shape[1]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    log_sum = wide(q).new_empty(q.shape[1], q.shape[0])
    for rows in _sequences(a.offsets):
        scores = _scores(_heads(q[rows]), _heads(k[rows], groups), a.scale, a.window)
        log_sum[:, rows] = scores.logsumexp(-1)
        out[rows] = (scores.softmax(-1) @ _heads(v[rows], groups)).transpose(0, 1).to(q.dtype)
    return out, log_sum


def _reference_backward(a: BackwardArguments) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (a.q, a.k, a.v))
    groups = a.q.shape[1] // a.k.shape[1]
    for rows in _sequences(a.offsets):
        queries, keys, values = _heads(a.q[rows]), _heads(a.k[rows], groups), _heads(a.v[rows], groups)
        d_rows = _heads(a.d_out[rows])
        shares = (_scores(queries, keys, a.scale, a.window) - a.log_sum[:, rows, None]).exp()
        dots = (d_rows * _heads(a.out[rows])).sum(-1, keepdim=True)
        d_scores = a.scale * shares * (d_rows @ values.transpose(1, 2) - dots)
        dq[rows] = (d_scores @ keys).transpose(0, 1).to(a.q.dtype)
        for into, gradient in ((dk, d_scores.transpose(1, 2) @ queries), (dv, shares.transpose(1, 2) @ d_rows)):
            into[rows] = gradient.unflatten(0, (-1, groups)).sum(1).transpose(0, 1).to(a.q.dtype)
    return dq, dk, dv


# C++: bf16 operands are multiplied with float32 sums; soft-max shares are rounded to bf16 for the product with values


def _described(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> native.Attention:
    """The arguments by address: the caller keeps the tensors alive."""
    return native.Attention(
        q=strided(q),
        k=strided(k),
        v=strided(v),
        heads=q.shape[1],
        kv_heads=k.shape[1],
        head_dim=q.shape[2],
        tokens=q.shape[0],
        scale=scale,
        window=window or 0,
    )


def _native(a: Arguments) -> tuple[Tensor, Tensor]:
    q, k, v = map(with_contiguous_heads, (a.q, a.k, a.v))
    out, log_sum = torch.empty(q.shape, dtype=q.dtype), torch.empty(q.shape[1], q.shape[0])
    described = _described(q, k, v, a.scale, a.window)
    native.packed_attention(described, out.data_ptr(), log_sum.data_ptr(), a.offsets, compute(q))
    return out, log_sum


def _native_backward(a: BackwardArguments) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, out, d_out = map(with_contiguous_heads, (a.q, a.k, a.v, a.out, a.d_out))
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
    described = _described(q, k, v, a.scale, a.window)
    results = dq.data_ptr(), dk.data_ptr(), dv.data_ptr()
    native.packed_attention_backward(
        described, strided(out), strided(d_out), a.log_sum.data_ptr(), *results, a.offsets, compute(q)
    )
    return dq, dk, dv


# Flash attention as it comes with torch (Dao 2023): one call for all sequences. Grouped heads and a window cost nothing
# more. `torch.nn.attention.varlen` (2.11 and later) calls the same two operations.


def _flash_refusal(a: Arguments | BackwardArguments) -> str | None:
    q = a.q
    if not q.is_cuda:
        return f"q is on {q.device}, and it runs on CUDA tensors only"
    if q.dtype not in (torch.bfloat16, torch.float16):
        return f"q is {q.dtype}, and it takes bfloat16 and float16"
    if q.shape[-1] > LARGEST_FLASH_HEAD or q.shape[-1] % 8:
        return f"heads have {q.shape[-1]} entries, and it takes multiples of 8 up to {LARGEST_FLASH_HEAD}"
    if torch.cuda.get_device_capability(q.device) < (8, 0):
        return f"{torch.cuda.get_device_name(q.device)} is older than compute capability 8.0"
    return None


@lru_cache(maxsize=64)
def _on_device(offsets: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    """Offsets (B+1,) int32 on the device, and the longest sequence: the same for every layer of a forward."""
    longest = max((stop - start for start, stop in pairwise(offsets)), default=0)
    return to_device(torch.tensor(offsets, dtype=torch.int32), device), longest


def _looks(window: int | None) -> dict[str, int]:
    """How far before and after itself a token looks; -1: no limit."""
    return {"window_size_left": -1 if window is None else window - 1, "window_size_right": 0}


def _flash(a: Arguments) -> tuple[Tensor, Tensor]:
    if a.q.shape[0] == 0:
        return torch.empty_like(a.q), a.q.new_empty(a.q.shape[1], 0, dtype=torch.float32)
    cu, longest = _on_device(tuple(a.offsets), a.q.device)
    out, log_sum, *_ = torch.ops.aten._flash_attention_forward(
        a.q, a.k, a.v, cu, cu, longest, longest, 0.0, True, False, scale=a.scale, **_looks(a.window)
    )
    return out, log_sum


def _flash_backward(a: BackwardArguments) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = a.q, a.k, a.v
    if q.shape[0] == 0:
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    cu, longest = _on_device(tuple(a.offsets), q.device)
    state, unused = (torch.empty(n, dtype=torch.uint64, device=q.device) for n in (2, 0))  # of dropout, which is off
    return torch.ops.aten._flash_attention_backward(
        a.d_out.contiguous(), q, k, v, a.out, a.log_sum, cu, cu, longest, longest, 0.0, True, state, unused,
        scale=a.scale, **_looks(a.window),
    )  # fmt: skip


# The ops


def _fake(a: Arguments) -> tuple[Tensor, Tensor]:
    q = a.q
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=accumulation_dtype(q))


def _fake_backward(a: BackwardArguments) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (a.q, a.k, a.v))


def _keep(ctx: Any, a: Arguments, results: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(a.q, a.k, a.v, *results)
    ctx.mark_non_differentiable(results[1])
    ctx.settings = {"offsets": a.offsets, "scale": a.scale, "window": a.window}


def _gradients(ctx: Any, d_out: Tensor | None, *_: Tensor | None) -> Mapping[str, Tensor | None]:
    if d_out is None:
        return {}
    q, k, v, out, log_sum = ctx.saved_tensors
    a = BackwardArguments(q, k, v, out, log_sum, d_out, **ctx.settings)
    return dict(zip(("q", "k", "v"), PACKED_ATTENTION_BACKWARD(a, ctx.backend), strict=True))


PACKED_ATTENTION = Op(
    "packed_attention",
    Arguments,
    "(Tensor, Tensor)",
    fake=_fake,
    gradient=Gradient(_keep, _gradients),
    backends={
        "native": Backend(_native, layer_refusal),
        "flash": Backend(_flash, _flash_refusal),
        "reference": Backend(_reference),
    },
)
PACKED_ATTENTION_BACKWARD = Op(
    "packed_attention_backward",
    BackwardArguments,
    "(Tensor, Tensor, Tensor)",
    fake=_fake_backward,
    backends={
        "native": Backend(_native_backward, layer_refusal),
        "flash": Backend(_flash_backward, _flash_refusal),
        "reference": Backend(_reference_backward),
    },
)
