"""The linear layer with adapters in C++, in tile registers (AMX), bfloat16.

Without them, and for a weight or bias that trains, the products of the reference are the vendor's own: `refusal` says
so with a `NoLoss`, as there is nothing to gain here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rlhf_kernels import extension
from rlhf_kernels.extension import address, native
from rlhf_kernels.lora_linear.reference import Arguments, BackwardArguments, groups, split
from rlhf_kernels.op import NoLoss


def refusal(a: Arguments | BackwardArguments) -> str | None:
    """None, or why the extension cannot take these arguments."""
    if extension.MISSING:
        return extension.MISSING
    if extension.LEVEL != "amx" or not a.x.is_cpu or not (a.x.dtype == a.weight.dtype == torch.bfloat16):
        return NoLoss("its tile registers need bfloat16 tensors on a processor with AMX")
    if isinstance(a, BackwardArguments) and (a.weight_gradient or a.bias_gradient):
        return NoLoss("it leaves the weight and the bias frozen")
    if any(t.dtype != torch.float32 or not t.is_contiguous() for t in (*a.lora_a, *a.lora_b)):
        return "it takes contiguous float32 adapters"
    if 1 not in a.weight.stride():
        return f"the weight has strides {a.weight.stride()}, expected contiguous rows or columns"
    return None


def lora_linear(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference; arguments are taken as checked and supported."""
    (n, k), ranks = a.weight.shape, [t.shape[0] for t in a.lora_a]
    x, factors = a.x.contiguous(), a.x.new_empty(sum(ranks) * (k + n))
    inner, y = x.new_empty(x.shape[0], max(ranks)), x.new_empty(x.shape[0], n)
    bias = None if a.bias is None else a.bias.float().contiguous()
    layer = _layer(a, factors, inner)
    if x.shape[0]:
        native.lora_linear(layer, x.data_ptr(), address(bias), inner.data_ptr(), y.data_ptr())
    return y, inner, factors


def lora_linear_backward(a: BackwardArguments) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    """As the reference; arguments are taken as checked and supported."""
    x, dy = a.x.contiguous(), a.dy.contiguous()
    dx = torch.empty_like(x)  # the gradients of A need what it takes anyway
    served = {slot for slot, _ in groups(a.slots, a.rows)} if a.adapter_gradients else set()
    da, db = (
        [t.new_empty(t.shape if slot in served else (0,)) for slot, t in enumerate(side)]
        for side in (a.lora_a, a.lora_b)
    )
    gradients = [
        native.LoraGradients(*(t.data_ptr() if slot in served else 0 for t in pair))
        for slot, pair in enumerate(zip(da, db, strict=True))
    ]
    layer = _layer(a, a.factors, a.inner)
    native.lora_linear_backward(layer, x.data_ptr(), a.inner.data_ptr(), dy.data_ptr(), dx.data_ptr(), gradients)
    return dx if a.x_gradient else x.new_empty(0), x.new_empty(0), x.new_empty(0), da, db


def _layer(a: Arguments | BackwardArguments, factors: Tensor, inner: Tensor) -> Any:
    """What the extension is told of the layer, by address: the caller keeps the tensors alive."""
    (n, k), ranks = a.weight.shape, [t.shape[0] for t in a.lora_a]
    sources = zip(a.lora_a, a.lora_b, split(factors, ranks, k, n), ranks, a.scale, strict=True)
    adapters = [
        native.LoraAdapter(
            a=lora_a.data_ptr(), b=lora_b.data_ptr(), scaled_a=cast_a.data_ptr(), rounded_b=cast_b.data_ptr(),
            rank=rank, scale=scale,
        )
        for lora_a, lora_b, (cast_a, cast_b), rank, scale in sources
    ]  # fmt: skip
    return native.LoraLayer(
        weight=a.weight.data_ptr(),
        outputs=n,
        inputs=k,
        output_stride=a.weight.stride(0),
        input_stride=a.weight.stride(1),
        adapters=adapters,
        groups=list(_groups(a)),
        inner_stride=inner.shape[1],
        threads=torch.get_num_threads(),
    )


def _groups(a: Arguments | BackwardArguments) -> Iterator[Any]:
    """Every group that has rows, those without an adapter included."""
    start = 0
    for slot, count in zip(a.slots, a.rows, strict=True):
        if count:
            yield native.LoraGroup(slot, start, start + count)
        start += count
