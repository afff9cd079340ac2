"""One value of a raw row, checked. A bad value raises `BadRow` with the reason."""

from __future__ import annotations

import math
import reprlib
from typing import Any

from rlhf_fast.data.schema import Message, Prompt
from rlhf_fast.data.sources import BadRow, Raw

_ROLES = ("system", "user", "assistant")
_SHAREGPT = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def text_of(value: Any, name: str) -> str:
    """A text with more than white space in it."""
    if not isinstance(value, str):
        raise BadRow(f"{name} is {reprlib.repr(value)}; expected text")
    if not value.strip():
        raise BadRow(f"{name} is empty; expected text")
    return value


def number_of(value: Any, name: str) -> float:
    """A finite number; digits in a text count, as CSV has nothing else."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRow(f"{name} is {reprlib.repr(value)}; expected a number")
    return number


def prompt_of(value: Any) -> Prompt:
    """Text, or a conversation that ends with the user."""
    return conversation_of(value, "prompt", "user") if isinstance(value, list) else text_of(value, "prompt")


def response_of(value: Any, name: str) -> str:
    """Text, or a list of one assistant message."""
    if not isinstance(value, list):
        return text_of(value, name)
    messages = conversation_of(value, name, "assistant")
    if len(messages) != 1:
        raise BadRow(f"{name} has {len(messages)} messages; expected one, of the assistant")
    return messages[0]["content"]


def instruction_of(row: Raw) -> str:
    """Instruction and input with a blank line between them; either may be absent, null, NaN or empty, but not both."""
    parts = [row[name] for name in ("instruction", "input") if not _absent(row.get(name))]
    if not parts:
        raise BadRow("instruction and input are empty; expected text in one of them")
    return "\n\n".join(text_of(part, "instruction or input") for part in parts)


def _absent(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def votes_of(value: Any) -> float:
    """The share of the first response in votes of 1, 2, or 0 for a tie, which counts as half a vote for each."""
    if (
        not isinstance(value, list)
        or not value
        or not all(type(vote) in (int, float) and vote in (0, 1, 2) for vote in value)
    ):
        raise BadRow(f"votes are {reprlib.repr(value)}; expected a list of 1 (the first), 2 (the second) or 0 (a tie)")
    return (value.count(1) + 0.5 * value.count(0)) / len(value)


def sharegpt_of(value: Any, ends_with: str | None) -> list[Message]:
    """A conversation in ShareGPT's from/value form, in our form."""
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise BadRow(f"conversations is {reprlib.repr(value)}; expected a list of from and value")
    for turn in value:
        if turn.get("from") not in _SHAREGPT:
            raise BadRow(f"a turn is from {turn.get('from')!r}; expected {', '.join(_SHAREGPT)}")
    turns = [{"role": _SHAREGPT[turn["from"]], "content": turn.get("value")} for turn in value]
    return conversation_of(turns, "conversations", ends_with)


def conversation_of(value: Any, name: str, ends_with: str | None) -> list[Message]:
    """Messages with known roles and non-empty contents, the last from `ends_with` (None: from anyone)."""
    if not isinstance(value, list) or not value:
        raise BadRow(f"{name} is {reprlib.repr(value)}; expected a list of messages")
    for message in value:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _ROLES:
            raise BadRow(f"{name} holds {reprlib.repr(message)}; expected content and a role of {', '.join(_ROLES)}")
        text_of(message.get("content"), f"the content of a message of the {role}")
    if ends_with is not None and value[-1]["role"] != ends_with:
        raise BadRow(f"{name} ends with {value[-1]['role']}; expected a last message of the {ends_with}")
    return [{"role": message["role"], "content": message["content"]} for message in value]
