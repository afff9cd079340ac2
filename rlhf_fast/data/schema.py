"""The rows that stages work on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
"""One turn: {"role": "system" | "user" | "assistant" | "tool", "content": text}, and where the row has them

tool_calls         of the assistant, a list of dicts in OpenAI's form, arguments as a dict; content may then be None
tool_call_id, name of a tool's answer
reasoning_content  of the assistant, text
weight             0 on an assistant's turn that is shown and not learnt; not there on one that is learnt

All but `weight` are for the chat template. Keys that the row leaves null are not there.
"""

Prompt = str | list[Message]
"""Plain text, or a conversation that ends before the assistant's turn; its turns have no `weight`."""

Tools = list[dict[str, Any]]
"""What a conversation's assistant may call, one JSON schema each, for the chat template."""


@dataclass(frozen=True)
class Demonstration:
    """What to learn: a prompt's completion, or every assistant turn of `messages` but those with weight 0.

    With neither a prompt nor messages, `completion` is plain text that is learnt from its first token on.
    """

    prompt: Prompt = ""
    completion: str = ""
    messages: list[Message] | None = None
    tools: Tools | None = None


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
    tools: Tools | None = None


@dataclass(frozen=True)
class PromptRow:
    """A prompt to respond to, and the row's other columns, handed to reward functions."""

    prompt: Prompt
    columns: dict[str, Any] = field(default_factory=dict)
    tools: Tools | None = None


def prompt_key(prompt: Prompt) -> str:
    """Equal exactly for equal prompts; what splits group by."""
    return json.dumps(prompt)
