"""The held-out prompts of an evaluation, tokenised once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.encode import encode_prompt, prompt_text
from rlhf_fast.data.schema import Prompt, PromptRow
from rlhf_fast.runtime.errors import UsageError


@dataclass
class HeldOut:
    """Prompts as rows, as token ids and as the text that the model sees, and the columns that all rows have."""

    prompts: list[Prompt]
    ids: list[list[int]]
    texts: list[str]
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    @classmethod
    def encode(cls, tokenizer: PreTrainedTokenizerBase, rows: list[PromptRow], max_length: int | None) -> HeldOut:
        """max_length: tokens that fit beside a response. Raises `UsageError` naming the row for one that does not."""
        ids, texts = [], []
        for number, row in enumerate(rows, 1):
            try:
                ids.append(encode_prompt(tokenizer, row.prompt, max_length=max_length))
            except UsageError as error:
                raise UsageError(f"held-out prompt {number}: {error}") from error
            texts.append(prompt_text(tokenizer, row.prompt))
        names = set.intersection(*(set(row.columns) for row in rows)) if rows else set()
        columns = {name: [row.columns[name] for row in rows] for name in sorted(names)}
        return cls([row.prompt for row in rows], ids, texts, columns)
