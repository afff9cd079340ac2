"""The linear layer with adapters in plain torch: one product for all rows, then an update per group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Group(NamedTuple):
    """Consecutive rows that share an adapter; slot -1 is no adapter."""

    slot: int
    rows: int


def lora_linear(
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor | Sequence[Tensor],
    lora_b: Tensor | Sequence[Tensor],
    scale: Tensor | Sequence[float],
    groups: list[Group],
    *,
    bias: Tensor | None,
) -> Tensor:
    """The specification of `rlhf_kernels.lora_linear`; arguments are taken as checked, `groups` cover the rows of x."""

    def adapted(x: Tensor, y: Tensor, slot: int) -> Tensor:
        if slot < 0:
            return y
        inner = F.linear(x, lora_a[slot].to(x.dtype)) * scale[slot]  # (m, R)
        return torch.addmm(y, inner, lora_b[slot].to(x.dtype).t())

    y = F.linear(x, weight, bias)
    if all(group.slot < 0 for group in groups):
        return y
    if len(groups) == 1:  # no concatenation, so no copy of y
        return adapted(x, y, groups[0].slot)
    sizes = [group.rows for group in groups]
    return torch.cat(
        [adapted(x_g, y_g, group.slot) for x_g, y_g, group in zip(x.split(sizes), y.split(sizes), groups, strict=True)]
    )
