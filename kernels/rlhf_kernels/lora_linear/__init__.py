"""A linear layer whose rows belong to different LoRA adapters.

Here: the products. Not here: which adapter serves which rows, where adapters are stored, packed weights for decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from rlhf_kernels.checks import check_same_dtype, check_shape
from rlhf_kernels.lora_linear import native, reference
from rlhf_kernels.lora_linear.reference import Arguments, BackwardArguments, groups
from rlhf_kernels.op import Backend, Op, without_autocast

__all__ = ["lora_linear"]

Settings = tuple[list[float], list[int], list[int], str | None]  # scale, slots, rows, backend


def lora_linear(
    x: Tensor,  # (M, K)
    weight: Tensor,  # (N, K)
    lora_a: Tensor | Sequence[Tensor],  # (S, R, K), or S of (R_s, K)
    lora_b: Tensor | Sequence[Tensor],  # (S, N, R), or S of (N, R_s)
    scale: Tensor | Sequence[float],  # (S,)
    slots: Tensor | Sequence[int],  # (G,)
    row_offsets: Tensor | Sequence[int],  # (G+1,)
    *,
    bias: Tensor | None = None,  # (N,)
    backend: str | None = None,
) -> Tensor:
    """x W^T + b + scale (x A^T) B^T -> (M, N), each group of rows with its own adapter (Hu et al. 2021).

    Rows row_offsets[g] .. row_offsets[g+1] of `x` are group g and use adapter slots[g]; -1 is no adapter. Both are
    Python ints or CPU int64 tensors, as they are read here. Several groups may name one adapter; a group may be
    empty. Adapters come stacked, or as sequences whose ranks may differ. scale A and B are cast to x's dtype for the
    products, once for forward and backward, and the gradients come back in their own. `weight` may be a transposed
    view; it and `bias` share x's dtype.

    Differentiable once in x, weight, bias, A and B; what needs no gradient costs none. Nothing is mutated. Without an
    adapter this is one `F.linear`. `backend` is "native" (C++, bfloat16 on a CPU with AMX; its gradient where weight
    and bias are frozen) or "reference", whose products are the vendor's own; None as everywhere. Raises ValueError for
    shapes, slots or offsets that do not fit, and for a chosen backend that cannot run.
    """
    if x.dim() != 2:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (M, K): flatten the leading dimensions first")
    if not len(lora_a) == len(lora_b) == len(scale):
        raise ValueError(
            f"got {len(lora_a)} A, {len(lora_b)} B and {len(scale)} scales, expected one of each per adapter"
        )
    check_same_dtype(x=x, weight=weight, **({} if bias is None else {"bias": bias}))
    slots, row_offsets = _host_ints("slots", slots), _host_ints("row_offsets", row_offsets)
    _check_groups(slots, row_offsets, x.shape[0], len(scale))
    rows = [stop - start for start, stop in pairwise(row_offsets)]
    served = {slot for slot, count in zip(slots, rows, strict=True) if slot >= 0 and count > 0}
    for slot in served:
        check_shape(f"lora_a[{slot}]", lora_a[slot], (lora_a[slot].shape[0], x.shape[1]))
        check_shape(f"lora_b[{slot}]", lora_b[slot], (weight.shape[0], lora_a[slot].shape[0]))
    if not served:
        with without_autocast([x]):
            return F.linear(x, weight, bias)
    scales = scale.tolist() if isinstance(scale, Tensor) else list(scale)
    return Layer.apply(x, weight, bias, (scales, slots, rows, backend), *lora_a, *lora_b)


def _host_ints(name: str, x: Tensor | Sequence[int]) -> list[int]:
    if not isinstance(x, Tensor):
        return list(x)
    if x.device.type != "cpu":
        raise ValueError(f"{name} is on {x.device}, expected ints or a CPU tensor: move it once, outside the layers")
    return x.tolist()


def _check_groups(slots: list[int], row_offsets: list[int], rows: int, adapters: int) -> None:
    if len(row_offsets) != len(slots) + 1 or row_offsets[0] != 0 or row_offsets[-1] != rows:
        raise ValueError(
            f"row_offsets is {row_offsets} for {len(slots)} slots, expected {len(slots) + 1} offsets "
            f"from 0 to {rows}: count the rows of x per group"
        )
    if row_offsets != sorted(row_offsets):
        raise ValueError(f"row_offsets is {row_offsets}, expected offsets that never fall: sort the rows by group")
    for slot in slots:
        if not -1 <= slot < adapters:
            raise ValueError(f"slots holds {slot}, expected -1 (no adapter) or an index of the {adapters} adapters")


class Layer(Function):
    """`lora_linear` and its gradient as one node.

    Written out, where the other operations have a `Gradient`: a forward and backward runs hundreds of these, and
    torch.library takes lists of tensors apart in Python, entry by entry, for some 0.3 ms a call.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings, *adapters: Tensor
    ) -> Tensor:
        lora_a, lora_b = _halves(adapters)
        scale, slots, rows, backend = settings
        a = Arguments(x, weight, bias, lora_a, lora_b, scale, slots, rows)
        y, inner, factors = LORA_LINEAR(a, backend)
        ctx.save_for_backward(x, weight, inner, factors, *adapters)
        ctx.settings = settings
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inner, factors, *adapters = ctx.saved_tensors
        lora_a, lora_b = _halves(adapters)
        x_gradient, weight_gradient, bias_gradient, _, *of_adapters = ctx.needs_input_grad
        scale, slots, rows, backend = ctx.settings
        a = BackwardArguments(
            x, weight, inner, factors, lora_a, lora_b, scale, slots, rows, dy, x_gradient, weight_gradient,
            bias_gradient, any(of_adapters),
        )  # fmt: skip
        dx, d_weight, d_bias, da, db = LORA_LINEAR_BACKWARD(a, backend)
        return (
            dx if x_gradient else None,
            d_weight if weight_gradient else None,
            d_bias if bias_gradient else None,
            None,
            *(d if d.numel() else None for d in (*da, *db)),
        )


def _halves(adapters: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """All A, all B."""
    return list(adapters[: len(adapters) // 2]), list(adapters[len(adapters) // 2 :])


def _fake(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    x, (n, k), ranks = a.x, a.weight.shape, [t.shape[0] for t in a.lora_a]
    return x.new_empty(x.shape[0], n), x.new_empty(x.shape[0], max(ranks)), x.new_empty(sum(ranks) * (k + n))


def _fake_backward(a: BackwardArguments) -> tuple[Any, ...]:
    served = {slot for slot, _ in groups(a.slots, a.rows)} if a.adapter_gradients else set()
    return (
        a.x.new_empty(a.x.shape if a.x_gradient else (0,)),
        a.x.new_empty(a.weight.shape if a.weight_gradient else (0,)),
        a.x.new_empty(a.weight.shape[:1] if a.bias_gradient else (0,)),
        *(
            [t.new_empty(t.shape if slot in served else (0,)) for slot, t in enumerate(side)]
            for side in (a.lora_a, a.lora_b)
        ),
    )


LORA_LINEAR = Op(
    "lora_linear",
    Arguments,
    "(Tensor, Tensor, Tensor)",
    fake=_fake,
    backends={
        "native": Backend(native.lora_linear, native.refusal),
        "reference": Backend(reference.lora_linear),
    },
)
LORA_LINEAR_BACKWARD = Op(
    "lora_linear_backward",
    BackwardArguments,
    "(Tensor, Tensor, Tensor, Tensor[], Tensor[])",
    fake=_fake_backward,
    backends={
        "native": Backend(native.lora_linear_backward, native.refusal),
        "reference": Backend(reference.lora_linear_backward),
    },
)
