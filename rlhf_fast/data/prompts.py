"""Prompts to respond to, tokenised once, with all that a reward may read of their rows, and the order in which a run
visits them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.columns import gather
from rlhf_fast.data.encode import encode_prompt, prompt_text
from rlhf_fast.data.fitting import encode_rows
from rlhf_fast.data.readers import OnBadRow
from rlhf_fast.data.rendering import Rendering, announce_prompts
from rlhf_fast.data.schema import Message, PromptRow
from rlhf_fast.runtime.passes import pass_order


@dataclass
class Prompts:
    """Token ids and text of each prompt; for rewards the other columns (None where a row has no such column) and the
    messages (None where the row is plain text)."""

    ids: list[list[int]]
    texts: list[str]
    columns: dict[str, list[Any]] = field(default_factory=dict)
    conversations: list[list[Message] | None] = field(default_factory=list)
    rendering: Rendering | None = None  # None: given as token ids
    tools: list[list[dict[str, Any]] | None] = field(default_factory=list)  # that each prompt offers

    @classmethod
    def encode(
        cls, tokenizer: PreTrainedTokenizerBase, rows: list[PromptRow], limit: int | None, *,
        noun: str = "prompt", source: str = "the data", on_bad_row: OnBadRow = "raise",
    ) -> Prompts:  # fmt: skip
        """Tokenise and check every prompt, before anything else costs time; `limit` tokens fit beside a response.
        Raises `UsageError`, which calls a row a `noun` of `source`, for one that does not fit."""
        fitting = encode_rows(
            rows, lambda row: encode_prompt(tokenizer, row.prompt, tools=row.tools, max_length=limit),
            noun=noun, source=source, on_bad_row=on_bad_row,
        )  # fmt: skip
        kept, ids = [row for row, _ in fitting], [ids for _, ids in fitting]
        return cls(
            ids,
            [prompt_text(tokenizer, row.prompt, row.tools) for row in kept],
            gather(row.columns for row in kept),
            [None if isinstance(row.prompt, str) else row.prompt for row in kept],
            announce_prompts(tokenizer, kept, ids, source),
            [row.tools for row in kept],
        )

    def __post_init__(self) -> None:
        self.conversations = self.conversations or [None] * len(self.ids)
        self.tools = self.tools or [None] * len(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, iteration: int, size: int, seed: int) -> list[int]:
        """Rows of batch `iteration`: passes over all prompts without a break, each pass in an order of its own."""
        places = [divmod(position, len(self)) for position in range(iteration * size, (iteration + 1) * size)]
        orders = {number: pass_order(len(self), seed, number) for number in {number for number, _ in places}}
        return [orders[number][index] for number, index in places]
