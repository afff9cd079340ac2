"""The held-out prompts of an evaluation, tokenised once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.columns import gather
from rlhf_fast.data.encode import encode_prompt, prompt_text
from rlhf_fast.data.fitting import encode_rows
from rlhf_fast.data.readers import OnBadRow
from rlhf_fast.data.rendering import Rendering, announce_prompts
from rlhf_fast.data.schema import Message, Prompt, PromptRow


@dataclass
class HeldOut:
    """Prompts as rows, as token ids and as the text that the model sees, and the other columns, None where a row has
    no such column."""

    prompts: list[Prompt]
    ids: list[list[int]]
    texts: list[str]
    columns: dict[str, list[Any]] = field(default_factory=dict)
    rendering: Rendering | None = None
    tools: list[list[dict[str, Any]] | None] = field(default_factory=list)  # that each prompt offers

    def __len__(self) -> int:
        return len(self.prompts)

    @classmethod
    def encode(
        cls, tokenizer: PreTrainedTokenizerBase, rows: list[PromptRow], max_length: int | None, *,
        source: str = "the data", on_bad_row: OnBadRow = "raise",
    ) -> HeldOut:  # fmt: skip
        """max_length: tokens that fit beside a response. Raises `UsageError` naming the row for one that does not."""
        fitting = encode_rows(
            rows, lambda row: encode_prompt(tokenizer, row.prompt, tools=row.tools, max_length=max_length),
            noun="held-out prompt", source=source, on_bad_row=on_bad_row,
        )  # fmt: skip
        kept, ids = [row for row, _ in fitting], [ids for _, ids in fitting]
        texts = [prompt_text(tokenizer, row.prompt, row.tools) for row in kept]
        rendering = announce_prompts(tokenizer, kept, ids, source)
        columns, tools = gather(row.columns for row in kept), [row.tools for row in kept]
        return cls([row.prompt for row in kept], ids, texts, columns, rendering, tools)

    @property
    def conversations(self) -> list[list[Message] | None]:
        """The prompts that are conversations; None for one in plain text."""
        return [None if isinstance(prompt, str) else prompt for prompt in self.prompts]
