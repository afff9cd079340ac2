"""Packed attention on a GPU by the flash attention that comes with torch (Dao 2023): one call for all sequences.

A sequence's tokens follow the others' without padding; grouped heads and a window cost nothing more. Scores are
float32, and operands bfloat16 or float16. `torch.nn.attention.varlen` (2.11 and later) calls the same two operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

LARGEST_HEAD = 256


def supports(args: Mapping[str, Any]) -> str | None:
    """Why it cannot take these arguments of `packed_attention` or its backward, or None."""
    q = args["q"]
    if not q.is_cuda:
        return f"q is on {q.device}, and it runs on CUDA tensors only"
    if q.dtype not in (torch.bfloat16, torch.float16):
        return f"q is {q.dtype}, and it takes bfloat16 and float16"
    if q.shape[-1] > LARGEST_HEAD or q.shape[-1] % 8:
        return f"heads have {q.shape[-1]} entries, and it takes multiples of 8 up to {LARGEST_HEAD}"
    if torch.cuda.get_device_capability(q.device) < (8, 0):
        return f"{torch.cuda.get_device_name(q.device)} is older than compute capability 8.0"
    return None


@lru_cache(maxsize=64)
def _on_device(offsets: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    """Offsets (B+1,) int32 on the device, and the longest sequence: the same for every layer of a forward."""
    longest = max((stop - start for start, stop in pairwise(offsets)), default=0)
    return torch.tensor(offsets, dtype=torch.int32).to(device, non_blocking=True), longest


def _window(window: int | None) -> dict[str, int]:
    """How far before and after itself a token looks; -1: no limit."""
    return {"window_size_left": -1 if window is None else window - 1, "window_size_right": 0}


def packed_attention(
    *, q: Tensor, k: Tensor, v: Tensor, offsets: list[int], scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """As the reference; arguments are taken as checked and supported."""
    if q.shape[0] == 0:
        return torch.empty_like(q), q.new_empty(q.shape[1], 0, dtype=torch.float32)
    cu, longest = _on_device(tuple(offsets), q.device)
    out, log_sum, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, cu, cu, longest, longest, 0.0, True, False, scale=scale, **_window(window)
    )
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
    """As the reference; arguments are taken as checked and supported."""
    if q.shape[0] == 0:
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    cu, longest = _on_device(tuple(offsets), q.device)
    state, unused = (torch.empty(n, dtype=torch.uint64, device=q.device) for n in (2, 0))  # of dropout, which is off
    return torch.ops.aten._flash_attention_backward(
        d_out.contiguous(), q, k, v, out, log_sum, cu, cu, longest, longest, 0.0, True, state, unused,
        scale=scale, **_window(window),
    )  # fmt: skip
