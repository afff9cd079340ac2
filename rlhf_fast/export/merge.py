"""An adapter added to the weights of its base."""

from __future__ import annotations

import torch

from rlhf_fast.model.shared import SharedModel


@torch.no_grad()
def merge(shared: SharedModel, name: str | None) -> None:
    """Put W + scale B A in place of each W that adapter `name` adapts (Hu et al. 2021); with None, leave the base as it
    is. The base (f32, on the CPU) is a plain model of transformers afterwards."""
    for place, layer in shared.wrapped.items():
        if name is not None and name in layer.scale:
            layer.weight().add_(layer.lora_b[name] @ layer.lora_a[name], alpha=layer.scale[name])
        shared.base.set_submodule(place, layer.base)
