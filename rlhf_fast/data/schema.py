"""The rows that stages work on, and splits that keep all rows of one prompt on the same side."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rlhf_fast.runtime.errors import UsageError

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


Row = TypeVar("Row", Comparison, PromptRow)


def folds_by_prompt(rows: Sequence[Row], folds: int, seed: int) -> list[list[Row]]:
    """`folds` parts whose numbers of prompts differ by one at most; inside a part the rows keep their order."""
    keys = _shuffled_keys(rows, seed)
    if not 2 <= folds <= len(keys):
        raise UsageError(f"cannot make {folds} folds of {len(keys)} different prompts; expected 2 to that many.")
    fold_of = {key: index % folds for index, key in enumerate(keys)}
    parts: list[list[Row]] = [[] for _ in range(folds)]
    for row in rows:
        parts[fold_of[prompt_key(row.prompt)]].append(row)
    return parts


def split_by_prompt(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """(train, held out): about `fraction` of the prompts held out, at least one on either side, rows in their order."""
    keys = _shuffled_keys(rows, seed)
    if not 0 < fraction < 1 or len(keys) < 2:
        raise UsageError(
            f"cannot hold out {fraction} of {len(keys)} prompts; expected a share in (0, 1) and 2 prompts or more."
        )
    held = set(keys[: min(max(1, round(fraction * len(keys))), len(keys) - 1)])
    train = [row for row in rows if prompt_key(row.prompt) not in held]
    return train, [row for row in rows if prompt_key(row.prompt) in held]


def _shuffled_keys(rows: Sequence[Row], seed: int) -> list[str]:
    """The different prompts, in an order that depends on them and on the seed only."""
    keys = sorted({prompt_key(row.prompt) for row in rows})
    random.Random(seed).shuffle(keys)
    return keys
