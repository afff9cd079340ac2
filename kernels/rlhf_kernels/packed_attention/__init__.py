"""Causal attention within sequences that lie side by side, without padding.

Here: soft-max attention with grouped keys and values and a sliding window. Not here: caches, soft-caps, decoding.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rlhf_kernels import backends
from rlhf_kernels.checks import check_same_dtype, check_shape
from rlhf_kernels.packed_attention import op

__all__ = ["attention_is_fused", "packed_attention"]


def packed_attention(
    q: Tensor,  # (T, heads, D)
    k: Tensor,  # (T, kv_heads, D)
    v: Tensor,  # (T, kv_heads, D)
    offsets: Sequence[int],  # (B+1,)
    *,
    scale: float,
    window: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """softmax(scale q k^T) v -> (T, heads, D): token i of a sequence attends to its tokens 0..i, the last `window` of
    them where a window is given (itself included).

    Tokens offsets[b] .. offsets[b+1] are sequence b; one may be empty. Query head h reads key and value head
    h // (heads / kv_heads). All share a dtype; scores and soft-max are float32 (float64 for float64).

    Differentiable in q, k and v. Memory beyond inputs and outputs: "native" (C++, CPU) keeps one float per token and
    head for the backward and needs scratch linear in the longest sequence; "flash" (CUDA, bfloat16 and float16: torch's
    flash attention) keeps the same float; "reference" (torch) holds the scores of a sequence. Nothing is mutated.
    Raises ValueError or TypeError for shapes, offsets and dtypes that do not fit.
    """
    if q.dim() != 3 or k.dim() != 3 or k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"q has shape {tuple(q.shape)} and k {tuple(k.shape)}, expected (T, heads, D) and (T, kv_heads, D) with "
            "heads a multiple of kv_heads"
        )
    check_shape("k", k, (q.shape[0], k.shape[1], q.shape[2]))
    check_shape("v", v, tuple(k.shape))
    check_same_dtype(q=q, k=k, v=v)
    offsets = list(offsets)
    if not offsets or offsets[0] != 0 or offsets[-1] != q.shape[0] or offsets != sorted(offsets):
        raise ValueError(f"offsets is {offsets}, expected offsets that rise from 0 to the {q.shape[0]} tokens of q")
    if window is not None and window < 1:
        raise ValueError(f"window is {window}, expected at least 1, or None for all tokens before")
    return op.packed_attention(q, k, v, offsets, scale, window, backend)[0]


def attention_is_fused(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether `packed_attention` of these tensors runs in one kernel for all sequences, which holds no scores."""
    return backends.is_fused("packed_attention", {"q": q, "k": k, "v": v})
