"""The trunk: the decoder layers below every adapter. It is the same network for every role: one pass serves them all.

A forward can run the trunk only and give its hidden states, or start from hidden states given. Both are the model's own
forward with some layers left out: what an architecture does before and after its layers stays its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeGuard

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf_fast.model.lora import LoRALinear, Routing


@dataclass(frozen=True)
class TrunkStates:
    """hidden (T, H): what the first `depth` decoder layers of `model` give for T packed tokens; no gradient."""

    model: object
    depth: int
    hidden: Tensor

    def rows(self, index: Tensor) -> TrunkStates:
        """The states of the tokens `index` (int64), in that order."""
        return TrunkStates(self.model, self.depth, self.hidden[index])


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a transformers decoder, in order: of its lists of such layers, the one that lies highest. Deeper
    ones are a vision or an audio tower's."""
    lists = [(name.count("."), module) for name, module in model.named_modules() if _is_list_of_layers(module)]
    return list(min(lists, key=lambda found: found[0])[1]) if lists else []


def _is_list_of_layers(module: nn.Module) -> TypeGuard[nn.ModuleList]:
    layers = list(module) if isinstance(module, nn.ModuleList) else []
    return bool(layers) and all(isinstance(layer, GradientCheckpointingLayer) for layer in layers)


def depth_below(layers: Sequence[nn.Module], adapted: Iterable[LoRALinear]) -> int:
    """How many of the first `layers` hold none of the `adapted` modules; 0 if one of these is in no layer at all."""
    wanted = {id(module) for module in adapted}
    inside = [wanted & {id(module) for module in layer.modules()} for layer in layers]
    if not wanted or wanted - set().union(*inside):
        return 0
    return next(index for index, found in enumerate(inside) if found)


def serve_trunk(layers: Sequence[nn.Module], routing: Routing) -> None:
    """Wrap the forward of `layers`, in place, so that it obeys the trunk of the current route."""
    for index, layer in enumerate(layers):
        vars(layer).pop("forward", None)  # a copy of a model comes with the wrapper of the original
        layer.forward = partial(_forward, routing, index, layer.forward)  # type: ignore[method-assign]


def _forward(routing: Routing, index: int, forward: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    trunk = None if routing.current is None else routing.current.trunk
    if trunk is None:
        return forward(hidden, *args, **kwargs)
    if trunk.hidden is None:
        if index < trunk.depth:
            return forward(hidden, *args, **kwargs)
        if index == trunk.depth:
            trunk.caught = hidden
        return hidden
    if index < trunk.depth:
        return hidden
    return forward(trunk.hidden if index == trunk.depth else hidden, *args, **kwargs)
