"""How much memory a run holds from its first step to its last."""

from __future__ import annotations

from collections.abc import Iterable

from rlhf_fast.model.shared import SharedModel
from rlhf_fast.runtime.device import bytes_of
from rlhf_fast.runtime.optimiser import Optimiser


def held_bytes(models: Iterable[SharedModel], optimiser: Optimiser) -> dict[str, int]:
    """Bytes of the models with their adapters and heads, of the gradients, and of AdamW's moments; a model that is
    given twice counts once."""
    different = {id(model): model for model in models}.values()
    parameters = [parameter for model in different for parameter in model.base.parameters()]
    heads = [p for model in different for name in model.configs for p in model.parameters(name)]
    gradients = [parameter.grad for parameter in optimiser.parameters if parameter.grad is not None]
    moments = [value for moment in optimiser.adamw.state.values() for value in moment.values()]
    return {
        "models and adapters": bytes_of([*parameters, *heads]),
        "gradients": bytes_of(gradients),
        "optimiser": bytes_of(moments),
    }
