"""The linear layer with adapters in C++, in tile registers (AMX), bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_kernels.backends import Meant
from rlhf_kernels.extension import LEVEL, MISSING, native
from rlhf_kernels.library import Arguments
from rlhf_kernels.lora_linear.reference import groups, split


def serves(x: Tensor, weight: Tensor) -> bool:
    """Whether this backend is the faster one: elsewhere the reference's products are the vendor's own."""
    return LEVEL == "amx" and x.is_cpu and x.dtype == weight.dtype == torch.bfloat16


def supports(args: Arguments) -> str | None:
    """None, or why the extension cannot take these arguments."""
    if MISSING:
        return MISSING
    x, weight = args["x"], args["weight"]
    if not serves(x, weight):
        return "its tile registers need bfloat16 tensors on a processor with AMX"
    if any(t.dtype != torch.float32 or not t.is_contiguous() for t in (*args["lora_a"], *args["lora_b"])):
        return "it takes contiguous float32 adapters"
    if 1 not in weight.stride():
        return f"the weight has strides {weight.stride()}, expected contiguous rows or columns"
    if args.get("weight_gradient") or args.get("bias_gradient"):
        return Meant("it leaves the weight and the bias frozen")
    return None


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
    """As the reference; arguments are taken as checked and supported."""
    (n, k), ranks = weight.shape, [a.shape[0] for a in lora_a]
    x, factors = x.contiguous(), x.new_empty(sum(ranks) * (k + n))
    inner, y = x.new_empty(x.shape[0], max(ranks)), x.new_empty(x.shape[0], n)
    bias = None if bias is None else bias.float().contiguous()
    layer = _layer(weight, factors, inner, lora_a, lora_b, scale, slots, rows)
    if x.shape[0]:
        native.lora_linear(layer, x.data_ptr(), 0 if bias is None else bias.data_ptr(), inner.data_ptr(), y.data_ptr())
    return y, inner, factors


def lora_linear_backward(
    *,
    x: Tensor,
    weight: Tensor,
    inner: Tensor,
    factors: Tensor,
    lora_a: Sequence[Tensor],
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
    """As the reference; arguments are taken as checked and supported."""
    x, dy = x.contiguous(), dy.contiguous()
    dx = torch.empty_like(x)  # the gradients of A need what it takes anyway
    served = {slot for slot, _ in groups(slots, rows)} if adapter_gradients else set()
    da, db = (
        [t.new_empty(t.shape if slot in served else (0,)) for slot, t in enumerate(side)] for side in (lora_a, lora_b)
    )
    gradients = [
        native.LoraGradients(*(t.data_ptr() if slot in served else 0 for t in pair))
        for slot, pair in enumerate(zip(da, db, strict=True))
    ]
    layer = _layer(weight, factors, inner, lora_a, lora_b, scale, slots, rows)
    native.lora_linear_backward(layer, x.data_ptr(), inner.data_ptr(), dy.data_ptr(), dx.data_ptr(), gradients)
    return dx if x_gradient else x.new_empty(0), x.new_empty(0), x.new_empty(0), da, db


def _layer(
    weight: Tensor, factors: Tensor, inner: Tensor, lora_a: Sequence[Tensor], lora_b: Sequence[Tensor],
    scale: Sequence[float], slots: Sequence[int], rows: Sequence[int],
) -> Any:  # fmt: skip
    """What the extension is told of the layer, by address: the caller keeps the tensors alive."""
    (n, k), ranks = weight.shape, [a.shape[0] for a in lora_a]
    adapters = [
        native.LoraAdapter(
            a=a.data_ptr(), b=b.data_ptr(), scaled_a=cast_a.data_ptr(), rounded_b=cast_b.data_ptr(), rank=rank, scale=s
        )
        for a, b, (cast_a, cast_b), rank, s in zip(
            lora_a, lora_b, split(factors, ranks, k, n), ranks, scale, strict=True
        )
    ]
    served, start = [], 0
    for slot, count in zip(slots, rows, strict=True):
        if count:
            served.append(native.LoraGroup(slot, start, start + count))
        start += count
    return native.LoraLayer(
        weight=weight.data_ptr(), outputs=n, inputs=k, output_stride=weight.stride(0), input_stride=weight.stride(1),
        adapters=adapters, groups=served, inner_stride=inner.shape[1], threads=torch.get_num_threads(),
    )  # fmt: skip
