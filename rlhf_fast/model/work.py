"""How much arithmetic a forward or a reading of log-probs cannot do without, for who profiles a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf_fast.runtime.phases import heard, works

if TYPE_CHECKING:
    from rlhf_fast.model.shared import SharedModel


def tell_forward(model: SharedModel, tokens: int, cu_seqlens: Sequence[int] | None, layers: slice) -> None:
    """Tell of the products of a forward through `layers`, and of its backward where gradients are on.

    Frozen weights have one product in each direction, and attention two, over half of the pairs of tokens. Adapters are
    left out, and the attention of a decode step (no `cu_seqlens`).
    """
    if not heard():
        return
    chosen = model.decoder_layers[layers]
    weights = sum(weight.numel() for layer in chosen for weight in _linear_weights(layer))
    pairs = sum((end - start) ** 2 for start, end in pairwise(cu_seqlens or ())) / 2
    flops = 2 * tokens * weights + len(chosen) * 4 * pairs * model.hidden_size
    _tell(flops, weights * model.dtype.itemsize)


def tell_head(rows: int, weight: torch.Tensor) -> None:
    """Tell of the products of `rows` hidden states with the output embedding (V, H)."""
    _tell(2 * rows * weight.numel(), weight.numel() * weight.element_size())


def _tell(flops: float, read: float) -> None:
    passes = 2 if torch.is_grad_enabled() else 1
    works(passes * flops, passes * read)


def _linear_weights(layer: nn.Module) -> Iterator[torch.Tensor]:
    for module in layer.modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            yield module.weight
