"""A linear layer whose rows belong to different LoRA adapters.

Here: the products. Not here: which adapter serves which rows, where adapters are stored, packed weights for decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor

from rlhf_kernels.checks import check_same_dtype, check_shape
from rlhf_kernels.library import without_autocast
from rlhf_kernels.lora_linear import op

__all__ = ["lora_linear"]


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
) -> Tensor:
    """x W^T + b + scale (x A^T) B^T -> (M, N), each group of rows with its own adapter (Hu et al. 2021).

    Rows row_offsets[g] .. row_offsets[g+1] of `x` are group g and use adapter slots[g]; -1 is no adapter. Both are
    Python ints or CPU int64 tensors, as they are read here. Several groups may name one adapter; a group may be
    empty. Adapters come stacked, or as sequences whose ranks may differ. scale A and B are cast to x's dtype for the
    products, once for forward and backward, and the gradients come back in their own. `weight` may be a transposed
    view; it and `bias` share x's dtype.

    Differentiable once in x, weight, bias, A and B; what needs no gradient costs none. Nothing is mutated. Without an
    adapter this is one `F.linear`. C++ runs for bf16 on a CPU with AMX (not where RLHF_FAST_BACKEND=reference), and its
    gradient where weight and bias are frozen; elsewhere the products are torch's. Raises
    ValueError for shapes, slots or offsets that do not fit.
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
    return op.Layer.apply(x, weight, bias, (scales, slots, rows), *lora_a, *lora_b)


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
