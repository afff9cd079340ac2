"""The prompts of a PPO run, tokenised once, and the order in which they are visited."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from rlhf_fast.runtime.errors import UsageError


@dataclass
class Prompts:
    """Token ids and text of each prompt, and the dataset's other columns for reward functions."""

    ids: list[list[int]]
    texts: list[str]
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, iteration: int, size: int, seed: int) -> list[int]:
        """Rows of batch `iteration`: passes over all prompts, each pass in an order of its own."""
        rows = []
        for position in range(iteration * size, (iteration + 1) * size):
            epoch, index = divmod(position, len(self))
            rows.append(self._order(epoch, seed)[index])
        return rows

    def _order(self, epoch: int, seed: int) -> list[int]:
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()


def stop_ids(
    tokenizer: PreTrainedTokenizerBase, stop_token: Literal["eos", "none"], stop_token_id: int | None
) -> tuple[int, ...]:
    """Ids that end a response: the given one, or the tokenizer's EOS, or none."""
    if stop_token_id is not None:
        if not 0 <= stop_token_id < len(tokenizer):
            raise UsageError(f"stop_token_id={stop_token_id} is no token; expected 0 to {len(tokenizer) - 1}.")
        return (stop_token_id,)
    if stop_token == "none":
        return ()
    if tokenizer.eos_token_id is None:
        raise UsageError("the tokenizer has no EOS token; set stop_token_id, or stop_token=none to run to the budget.")
    return (tokenizer.eos_token_id,)
