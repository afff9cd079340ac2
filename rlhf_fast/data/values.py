"""One value of a raw row, checked. A bad value raises `BadRow` with the reason.

Texts, numbers, the question of a row, votes, and tools. Conversations are in `turns.py`.
"""

from __future__ import annotations

import json
import math
import reprlib
from typing import Any

from rlhf_fast.data.schema import Tools
from rlhf_fast.data.sources import BadRow, Raw

QUESTION = ("instruction", "question", "query")
"""Columns that a question is read from, with `input` below it where there is one; or `input` alone."""
OF_A_QUESTION = ("context", "passage", "choices", "options")
"""Columns that belong to a question in some data sets, and that no common format says how to join to it."""


def shown(value: Any) -> str:
    """A short form of any value, for messages."""
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer of too many digits
        return f"a very large {type(value).__name__}"


def absent(value: Any) -> bool:
    """Null, NaN, white space, an empty list or dict: a column or key that says nothing."""
    if isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, (list, tuple, dict)) and not value)


def text_of(value: Any, name: str) -> str:
    """A text with more than white space in it."""
    if not isinstance(value, str):
        raise BadRow(f"{name} is {shown(value)}; expected text")
    if not value.strip():
        raise BadRow(f"{name} is empty; expected text")
    return value


def number_of(value: Any, name: str) -> float:
    """A finite number; digits in a text count, as CSV has nothing else."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRow(f"{name} is {shown(value)}; expected a number")
    return number


def instruction_of(row: Raw) -> str:
    """The question of a row: one of `QUESTION` and `input`, with a blank line between them; either may be absent.

    Raises `BadRow` if both are, if two columns hold different questions, or if more belongs to it.
    """
    asked = {name: row[name] for name in QUESTION if not absent(row.get(name))}
    if len({str(value) for value in asked.values()}) > 1:
        raise BadRow(f"{' and '.join(asked)} hold different questions; expected one. Join them, or rename a column")
    parts = [*list(asked.values())[:1], *([] if absent(row.get("input")) else [row["input"]])]
    named = ", ".join(name for name in (*QUESTION, "input") if name in row)
    if not parts:
        raise BadRow(f"{named.replace(', ', ' and ')} {'are' if ',' in named else 'is'} empty; expected text in one")
    more = [name for name in OF_A_QUESTION if not absent(row.get(name))]
    if more:
        raise BadRow(
            f"{', '.join(more)} would be left out of the question. Write the whole question into one column named "
            "prompt, or rename what does not belong to it"
        )
    return "\n\n".join(text_of(part, named.replace(", ", " or ")) for part in parts)


def votes_of(value: Any) -> float:
    """The share of the first response in votes of 1, 2, or 0 for a tie, which counts as half a vote for each."""
    if (
        not isinstance(value, list)
        or not value
        or not all(type(vote) in (int, float) and vote in (0, 1, 2) for vote in value)
    ):
        raise BadRow(f"votes are {shown(value)}; expected a list of 1 (the first), 2 (the second) or 0 (a tie)")
    return (value.count(1) + 0.5 * value.count(0)) / len(value)


def json_of(value: Any, name: str) -> Any:
    """What JSON text holds, as CSV and Parquet often carry nested values; any other value that JSON can hold as it is.

    The template and the files that a run writes hold these values as JSON.
    """
    try:
        if isinstance(value, str):
            return json.loads(value)
        json.dumps(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise BadRow(f"{name} is {shown(value)}; expected JSON ({type(error).__name__}: {error})") from error
    return value


def tools_of(value: Any) -> Tools | None:
    """A list of JSON schemas, or that list as JSON text; a bare function is wrapped as templates expect it."""
    if absent(value):
        return None
    tools = json_of(value, "tools")
    if not isinstance(tools, list):
        raise BadRow(f"tools is {shown(value)}; expected a list of functions, each with its JSON schema")
    return [_tool(tool) for tool in tools] or None


def _tool(value: Any) -> dict[str, Any]:
    tool = json_of(value, "a tool")
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRow(f"tools holds {shown(value)}; expected a function with its name and JSON schema")
    return tool if "function" in tool else {"type": "function", "function": tool}
