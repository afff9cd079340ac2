"""Micro-batches: the one way in which work on many sequences is cut into forwards that fit, and run.

Scoring, every stage's loss and the trunk hand over how to cut (`by_tokens`) and what to do with a micro-batch. What is
not theirs to know is here: micro-batches are halved where memory is short, processes that divide the layers of a model
run as many passes as each other, and a run that was asked to stop does so between two micro-batches. `held_bytes` says
what a run holds all the time beside them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch

from rlhf_fast.model.sharding import in_step
from rlhf_fast.runtime.interrupt import stop_if_asked
from rlhf_fast.runtime.memory import bytes_of, is_out_of_memory
from rlhf_fast.runtime.optimiser import Optimiser

if TYPE_CHECKING:
    from rlhf_fast.model.shared import SharedModel

logger = logging.getLogger(__name__)
MicroBatch = TypeVar("MicroBatch")  # what stands for one: mostly the numbers of its sequences
Result = TypeVar("Result")
NO_SEQUENCES: list[int] = []
"""The `spare` of work on lists of sequences' numbers, which runs something of its own in place of no sequence."""


class BatchSizes(Protocol):
    """The fields of a config that say how to cut."""

    max_tokens_per_micro_batch: int
    auto_find_batch_size: bool


@dataclass
class MicroBatches:
    """Micro-batches of at most `tokens` tokens. may_halve: halve `tokens`, for the rest of the run, where one does not
    fit.

    clear_gradients: drops what the micro-batches before have added up, as all are run again then.
    """

    tokens: int
    may_halve: bool = False
    clear_gradients: Callable[[], None] = lambda: None

    @classmethod
    def of(cls, config: BatchSizes, clear_gradients: Callable[[], None] = lambda: None) -> MicroBatches:
        return cls(config.max_tokens_per_micro_batch, config.auto_find_batch_size, clear_gradients)

    def run(
        self,
        model: SharedModel,
        cut: Callable[[int], Sequence[MicroBatch]],
        work: Callable[[MicroBatch, float], Result],
        *,
        spare: MicroBatch,
        may_stop: bool = True,
    ) -> list[Result]:
        """What `work(micro_batch, 1.0)` gives for each micro-batch of `cut(tokens)`, in order.

        Where memory is short in one process, it alone cuts again: `cut` must exchange nothing with the others. Where
        processes divide the layers of `model`, those with fewer micro-batches run `work(spare, 0.0)` until all have run
        as many passes: its loss is to be multiplied by that weight, and what it gives is left out.
        may_stop: raise `Abandoned` after a micro-batch if the run was asked to stop.
        """
        while True:
            try:
                return self._once(model, cut, work, spare, may_stop)
            except (MemoryError, RuntimeError) as error:
                if not (is_out_of_memory(error) and self.may_halve and self.tokens > 1):
                    raise
                reason = str(error).split("\n")[0] or type(error).__name__
            self.clear_gradients()  # out here, where the error no longer keeps the activations alive
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            logger.warning("out of memory with %d tokens a micro-batch: half from now on (%s)", self.tokens, reason)
            self.tokens //= 2

    def metrics(self) -> dict[str, float]:
        """The tokens, where they may change."""
        return {"max_tokens_per_micro_batch": float(self.tokens)} if self.may_halve else {}

    def _once(
        self, model: SharedModel, cut: Callable[[int], Sequence[MicroBatch]],
        work: Callable[[MicroBatch, float], Result], spare: MicroBatch, may_stop: bool,
    ) -> list[Result]:  # fmt: skip
        results = []
        for micro_batch, weight in in_step(model, cut(self.tokens), spare):
            result = work(micro_batch, weight)
            if weight:
                results.append(result)
            if may_stop:
                stop_if_asked()
        return results


def by_tokens(lengths: Sequence[int], numbers: Sequence[int] | None = None) -> Callable[[int], list[list[int]]]:
    """A cut of sequences with these `lengths`: their `numbers` (default: 0, 1, ...), in order, in groups of at most so
    many tokens; a longer sequence goes alone."""
    names = range(len(lengths)) if numbers is None else numbers
    return lambda max_tokens: [[names[i] for i in group] for group in cut_by_tokens(lengths, max_tokens)]


def cut_by_tokens(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices 0..n-1, in order, cut into consecutive groups of at most `max_tokens` tokens (at least one sequence)."""
    groups: list[list[int]] = []
    used = 0
    for index, length in enumerate(lengths):
        if not groups or used + length > max_tokens:
            groups.append([])
            used = 0
        groups[-1].append(index)
        used += length
    return groups


def held_bytes(models: Iterable[SharedModel], optimiser: Optimiser) -> dict[str, int]:
    """Bytes of the models with their adapters and heads, of the gradients, and of AdamW's moments; a model that is
    given twice counts once."""
    different = {id(model): model for model in models}.values()
    parameters = [parameter for model in different for parameter in model.base.parameters()]
    heads = [p for model in different for name in model.configs for p in model.parameters(name)]
    return {"models and adapters": bytes_of([*parameters, *heads]), **optimiser.held_bytes()}
