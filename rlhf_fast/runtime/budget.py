"""How many tokens go through a forward and backward at once, and less of them where memory is not enough."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from rlhf_fast.runtime.config import StageConfig
from rlhf_fast.runtime.out_of_memory import is_out_of_memory

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass
class Budget:
    """`tokens` of a micro-batch. `may_halve`: halve them, for the rest of the run, where they do not fit."""

    tokens: int
    may_halve: bool

    @classmethod
    def of(cls, config: StageConfig) -> Budget:
        return cls(config.max_tokens_per_micro_batch, config.auto_find_batch_size)

    def run(self, work: Callable[[], T], undo: Callable[[], None]) -> T:
        """What `work`, which reads `tokens`, returns. Where it runs out of memory and may halve them, `undo` takes back
        what it left, and it runs again."""
        while True:
            try:
                return work()
            except (MemoryError, RuntimeError) as error:
                if not (is_out_of_memory(error) and self.may_halve and self.tokens > 1):
                    raise
                reason = str(error).split("\n")[0] or type(error).__name__
            undo()  # out here, where the error no longer keeps the activations alive
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            logger.warning("out of memory with %d tokens a micro-batch: half from now on (%s)", self.tokens, reason)
            self.tokens //= 2

    def metrics(self) -> dict[str, float]:
        """The tokens, where they may change."""
        return {"max_tokens_per_micro_batch": float(self.tokens)} if self.may_halve else {}
