"""The trunk: the decoder layers below every adapter. It is the same network for every role, so one pass serves them
all.

A forward can run the trunk only and give its hidden states, or start from hidden states given. Both are the model's own
forward with some layers left out: what an architecture does before and after its layers stays its own. `TrunkCache`
keeps the states of a set of sequences, computed once where many forwards of the same sequences follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf_fast.model.batches import NO_SEQUENCES, MicroBatches, by_tokens
from rlhf_fast.model.lora import LoRALinear, Routing
from rlhf_fast.model.packed import SPARE
from rlhf_fast.runtime.phases import holds, phase
from rlhf_kernels.checks import to_device

if TYPE_CHECKING:
    from rlhf_fast.model.shared import SharedModel


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


class TrunkCache:
    """States below the lowest adapted layer for each different sequence: tokens * hidden_size numbers in memory.

    They serve every role whose adapter starts at that layer or above. The trunk is frozen, so what starts from the
    states is the same computation as what starts from the tokens. Empty where every layer is adapted or trained.
    A forward asks by the numbers of its sequences among `sequences` (`Packed.numbers`).
    """

    def __init__(self, model: SharedModel, sequences: Iterable[Sequence[int]], micro_batches: MicroBatches) -> None:
        self.model, self.depth = model, model.trunk_depth
        rows = list(map(tuple, sequences)) if self.depth else []
        different = sorted(set(rows), key=lambda sequence: (len(sequence), sequence))
        place = {sequence: i for i, sequence in enumerate(different)}
        self.place = [place[sequence] for sequence in rows]  # number -> which of the different ones
        self.number_of = {sequence: number for number, sequence in enumerate(rows)}

        def states(group: list[int], weight: float) -> list[Tensor]:
            chosen = [different[i] for i in group] or [(0,)]
            tokens = to_device(torch.tensor([token for sequence in chosen for token in sequence]), model.device)
            lengths = [len(sequence) for sequence in chosen]
            found = model.trunk_states(tokens, [0, *accumulate(lengths)])
            assert found is not None  # the depth is not 0
            return list(found.hidden.split(lengths))

        parts = (
            micro_batches.run(model, by_tokens([*map(len, different)]), states, spare=NO_SEQUENCES)
            if self.depth
            else []
        )
        self.hidden = [own for part in parts for own in part]
        holds("buffers", self.hidden)

    def states(self, numbers: Sequence[int]) -> TrunkStates | None:
        """The states of these sequences side by side, zeros for `SPARE` alone; None without a trunk."""
        if not self.depth:
            return None
        if list(numbers) == [SPARE]:
            model = self.model
            return TrunkStates(
                model, self.depth, torch.zeros(1, model.hidden_size, dtype=model.dtype, device=model.device)
            )
        return TrunkStates(self.model, self.depth, torch.cat([self.hidden[self.place[n]] for n in numbers]))

    def numbers(self, sequences: Iterable[Sequence[int]]) -> list[int] | None:
        """The numbers of `sequences`; None if one of them is not here."""
        found = [self.number_of.get(tuple(sequence)) for sequence in sequences]
        known = [number for number in found if number is not None]
        return known if len(known) == len(found) else None

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Within it, forwards of these sequences start from their states. Prefill and decoding run as ever."""
        self.model.trunk_cache = self
        try:
            yield
        finally:
            self.model.trunk_cache = None


@contextmanager
def keep_trunk(
    models: Iterable[SharedModel], sequences: Sequence[Sequence[int]], micro_batches: MicroBatches
) -> Iterator[None]:
    """Within it, each of `models` serves a `TrunkCache` of these sequences."""
    different = {id(model): model for model in models}.values()
    with phase("trunk"):
        caches = [TrunkCache(model, sequences, micro_batches) for model in different]
    with ExitStack() as stack:
        for cache in caches:
            stack.enter_context(cache.serving())
        yield
