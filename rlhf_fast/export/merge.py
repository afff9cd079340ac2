"""An adapter added to the weights of its base."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from rlhf_fast.model.load import load_shared


@torch.no_grad()
def merged_model(path: str) -> PreTrainedModel:
    """The model at `path`; of an adapter folder the base with W + scale B A in place of each adapted W (Hu et al.).

    In float32, on the CPU. Raises `UsageError` where the adapter does not fit its base.
    """
    shared, name = load_shared(path, dtype=torch.float32)
    for place, layer in shared.wrapped.items():
        if name is not None and name in layer.scale:
            layer.weight().add_(layer.lora_b[name] @ layer.lora_a[name], alpha=layer.scale[name])
        shared.base.set_submodule(place, layer.base)
    return shared.base
