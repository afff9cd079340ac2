"""The trunk's hidden states of a set of sequences, computed once where many forwards of the same sequences follow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise

import torch
from torch import Tensor

from rlhf_fast.model.packed import cut_by_tokens
from rlhf_fast.model.sharding import in_step
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.model.trunk import TrunkStates
from rlhf_fast.runtime.phases import phase


class TrunkCache:
    """States below the lowest adapted layer for each different sequence: tokens * hidden_size numbers in memory.

    They serve every role whose adapter starts at that layer or above. The trunk is frozen, so what starts from the
    states is the same computation as what starts from the tokens. Empty where every layer is adapted or trained.
    """

    def __init__(self, model: SharedModel, sequences: Iterable[Sequence[int]], *, max_tokens: int) -> None:
        self.model, self.depth = model, model.trunk_depth
        self.hidden: dict[tuple[int, ...], Tensor] = {}
        different = sorted(set(map(tuple, sequences)), key=lambda sequence: (len(sequence), sequence))
        groups = cut_by_tokens([len(sequence) for sequence in different], max_tokens) if self.depth else []
        for group, counts in in_step(model, groups, []):
            chosen = [different[i] for i in group] or [(0,)]
            tokens = torch.tensor([token for sequence in chosen for token in sequence], device=model.device)
            lengths = [len(sequence) for sequence in chosen]
            offsets = [0, *torch.tensor(lengths).cumsum(0).tolist()]
            states = model.trunk_states(tokens, offsets)
            if states is not None and counts:
                self.hidden |= zip(chosen, states.hidden.split(lengths), strict=True)

    def states(self, tokens: Tensor, cu_seqlens: Sequence[int]) -> TrunkStates | None:
        """The states of packed tokens (T,); None if one of their sequences is not here."""
        if not self.hidden:
            return None
        ids = tokens.tolist()
        parts = [self.hidden.get(tuple(ids[start:end])) for start, end in pairwise(cu_seqlens)]
        found = [part for part in parts if part is not None]
        return TrunkStates(self.model, self.depth, torch.cat(found)) if found and len(found) == len(parts) else None

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Within it, forwards of these sequences start from their states. Prefill and decoding run as ever."""
        self.model.trunk_cache = self
        try:
            yield
        finally:
            self.model.trunk_cache = None


@contextmanager
def keep_trunk(models: Iterable[SharedModel], sequences: Sequence[Sequence[int]], *, max_tokens: int) -> Iterator[None]:
    """Within it, each of `models` serves a `TrunkCache` of these sequences; max_tokens: tokens in one forward."""
    different = {id(model): model for model in models}.values()
    with phase("trunk"):
        caches = [TrunkCache(model, sequences, max_tokens=max_tokens) for model in different]
    with ExitStack() as stack:
        for cache in caches:
            stack.enter_context(cache.serving())
        yield
