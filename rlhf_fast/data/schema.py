"""The rows that stages work on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}"""

Prompt = str | list[Message]
"""Plain text, or a conversation that ends before the assistant's turn."""


@dataclass(frozen=True)
class Demonstration:
    """What to learn: a prompt's completion, or every assistant turn of `messages`.

    With neither a prompt nor messages, `completion` is plain text that is learnt from its first token on.
    """

    prompt: Prompt = ""
    completion: str = ""
    messages: list[Message] | None = None


@dataclass(frozen=True)
class Comparison:
    """Two or more responses to a prompt. ranks: lower is better, equal is a tie.

    probability: for two responses, how likely the first is the better one (vote margins); None where ranks say all.
    meta: the row's other columns.
    """

    prompt: Prompt
    responses: tuple[str, ...]
    ranks: tuple[float, ...]
    probability: float | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptRow:
    """A prompt to respond to, and the row's other columns, handed to reward functions."""

    prompt: Prompt
    columns: dict[str, Any] = field(default_factory=dict)


def prompt_key(prompt: Prompt) -> str:
    """Equal exactly for equal prompts; what splits group by."""
    return json.dumps(prompt)
