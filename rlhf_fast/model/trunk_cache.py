"""The trunk's hidden states of a set of sequences, computed once where many forwards of the same sequences follow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from rlhf_fast.model.batches import NO_ROWS, MicroBatches, by_tokens
from rlhf_fast.model.packed import SPARE
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.model.trunk import TrunkStates
from rlhf_fast.runtime.phases import holds, phase


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
            tokens = torch.tensor([token for sequence in chosen for token in sequence], device=model.device)
            lengths = [len(sequence) for sequence in chosen]
            found = model.trunk_states(tokens, [0, *torch.tensor(lengths).cumsum(0).tolist()])
            assert found is not None  # the depth is not 0
            return list(found.hidden.split(lengths))

        parts = micro_batches.run(model, by_tokens([*map(len, different)]), states, spare=NO_ROWS) if self.depth else []
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
