"""Rotary position embedding of queries and keys (Su et al. 2021), halves of a head paired as in Llama."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_kernels.checks import accumulation_dtype, check_same_dtype, check_shape
from rlhf_kernels.extension import compute, layer_refusal, native, strided, with_contiguous_heads
from rlhf_kernels.op import Backend, Gradient, Op
from rlhf_kernels.triton_support import in_triton

__all__ = ["rotary"]


class Arguments(NamedTuple):
    """Results: q and k, turned. The gradient is the same op, turning the other way."""

    q: Tensor  # (T, heads, D)
    k: Tensor  # (T, kv_heads, D)
    cos: Tensor  # (T, D/2)
    sin: Tensor  # (T, D/2)
    inverse: bool


def rotary(
    q: Tensor,  # (T, heads, D)
    k: Tensor,  # (T, kv_heads, D)
    cos: Tensor,  # (T, D/2)
    sin: Tensor,  # (T, D/2)
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """q and k with each pair (x[d], x[d + D/2]) turned by the token's angle d: new tensors of the same shapes.

    All share a dtype; computed in float32 (float64 for float64) and rounded once. Differentiable in q and k: the
    gradient is turned back. Nothing is mutated. Views of one product are read where they lie. `backend` is "native"
    (C++, CPU), "triton" (CUDA; float64 not, D up to 256, one launch for both) or "reference"; None as everywhere.
    Raises ValueError or TypeError for shapes and dtypes that do not fit.
    """
    check_shape("k", k, (q.shape[0], k.shape[1], q.shape[2]))
    for name, angles in (("cos", cos), ("sin", sin)):
        check_shape(name, angles, (q.shape[0], q.shape[2] // 2))
    if q.shape[2] % 2:
        raise ValueError(f"the heads of q have {q.shape[2]} entries, expected an even number to pair them")
    check_same_dtype(q=q, k=k, cos=cos, sin=sin)
    return ROTARY(Arguments(q, k, cos.detach(), sin.detach(), inverse=False), backend)


def _reference(a: Arguments) -> tuple[Tensor, Tensor]:
    """The specification; `inverse` turns back."""
    wide = accumulation_dtype(a.q)
    cos, sin = a.cos.to(wide)[:, None], a.sin.to(wide)[:, None] * (-1 if a.inverse else 1)

    def turned(x: Tensor) -> Tensor:
        low, high = x.to(wide).chunk(2, -1)
        return torch.cat([low * cos - high * sin, high * cos + low * sin], -1).to(x.dtype)

    return turned(a.q), turned(a.k)


def _native(a: Arguments) -> tuple[Tensor, Tensor]:
    """Queries and keys are read and written once."""
    cos, sin = a.cos, a.sin
    if cos.stride() != sin.stride() or (cos.shape[1] > 1 and cos.stride(1) != 1):
        cos, sin = cos.contiguous(), sin.contiguous()
    on, direction = compute(a.q), -1.0 if a.inverse else 1.0
    results = []
    for x in (with_contiguous_heads(a.q), with_contiguous_heads(a.k)):
        y = torch.empty(x.shape, dtype=x.dtype)
        tokens, heads, head_dim = x.shape
        native.rotary(
            strided(x),
            cos.data_ptr(),
            sin.data_ptr(),
            cos.stride(0),
            y.data_ptr(),
            tokens,
            heads,
            head_dim,
            direction,
            on,
        )
        results.append(y)
    return results[0], results[1]


def _fake(a: Arguments) -> tuple[Tensor, Tensor]:
    return a.q.new_empty(a.q.shape), a.k.new_empty(a.k.shape)


def _keep(ctx: Any, a: Arguments, results: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(a.cos, a.sin)
    ctx.inverse, ctx.shapes = a.inverse, (a.q.shape, a.k.shape)


def _gradients(ctx: Any, dq: Tensor | None, dk: Tensor | None) -> Mapping[str, Tensor | None]:
    cos, sin = ctx.saved_tensors
    dq, dk = (cos.new_zeros(shape) if d is None else d for d, shape in zip((dq, dk), ctx.shapes, strict=True))
    dq, dk = ROTARY(Arguments(dq, dk, cos, sin, not ctx.inverse), ctx.backend)
    return {"q": dq, "k": dk}


ROTARY = Op(
    "rotary",
    Arguments,
    "(Tensor, Tensor)",
    fake=_fake,
    gradient=Gradient(_keep, _gradients),
    backends={
        "native": Backend(_native, layer_refusal),
        "triton": in_triton("rlhf_kernels.rotary_triton", "rotary"),
        "reference": Backend(_reference),
    },
)
