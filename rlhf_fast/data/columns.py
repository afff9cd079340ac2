"""From a raw row in one of the formats people have to a row of ours; the columns that are there tell the format.

Formats: TRL's (plain or conversational, the prompt of a pair explicit or implicit), n-way rankings, ShareGPT, Alpaca's
instruction+input+output, plain text. A row that does not fit raises `BadRow` with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from rlhf_fast.data.schema import Comparison, Demonstration, Message, Prompt, PromptRow
from rlhf_fast.data.sources import BadRow, Raw
from rlhf_fast.data.values import (
    conversation_of,
    instruction_of,
    number_of,
    prompt_of,
    response_of,
    sharegpt_of,
    text_of,
    votes_of,
)

T = TypeVar("T")
Shapes = dict[tuple[str, ...], Callable[[Raw], T]]
_LAST_TURN = "\n\nAssistant:"


def demonstration(row: Raw) -> Demonstration:
    return _convert(row, _DEMONSTRATIONS)


def comparison(row: Raw) -> Comparison:
    return _convert(row, _COMPARISONS)


def prompt_row(row: Raw) -> PromptRow:
    """The prompt of a row in any format, and the columns that it was not read from."""
    prompt = _convert(row, _PROMPTS)
    shape = _shape(row, _PROMPTS)
    used = {"prompt"} if "chosen" in shape else {*shape, "input"} if "instruction" in shape else set(shape)
    return PromptRow(prompt, {name: value for name, value in row.items() if name not in used})


def soft_ranks(probability: float) -> tuple[float, float]:
    """Ranks of two responses of which the first is the better one with `probability`."""
    return (1.0, 1.0) if probability == 0.5 else (1.0, 2.0) if probability > 0.5 else (2.0, 1.0)


def _convert(row: Raw, shapes: Shapes[T]) -> T:
    return shapes[_shape(row, shapes)](row)


def _shape(row: Raw, shapes: Shapes[T]) -> tuple[str, ...]:
    """The first shape whose columns are all there."""
    for columns in shapes:
        if all(column in row for column in columns):
            return columns
    raise BadRow(f"columns are {', '.join(map(str, row))}; expected {', or '.join(map('+'.join, shapes))}")


def _ranking(row: Raw) -> Comparison:
    responses = row["responses"]
    if not isinstance(responses, list) or len(responses) < 2:
        raise BadRow(f"responses is {str(responses)[:80]!r}; expected a list of two or more")
    probability = _probability(row, len(responses))
    ranks = row.get("ranks", soft_ranks(probability) if probability is not None else None)
    if not isinstance(ranks, (list, tuple)) or len(ranks) != len(responses):
        raise BadRow(f"ranks is {ranks!r} for {len(responses)} responses; expected one number each, lower is better")
    values = tuple(number_of(rank, "a rank") for rank in ranks)
    _refuse_contradiction(values, probability)
    texts = tuple(response_of(response, "a response") for response in responses)
    used = {"prompt", "responses", "ranks", "probability", "votes"}
    return Comparison(prompt_of(row["prompt"]), texts, values, probability, _others(row, used))


def _chosen_rejected(row: Raw) -> Comparison:
    prompt, chosen, rejected = _pair(row)
    probability = _probability(row, 2)
    _refuse_contradiction((1.0, 2.0), probability)
    ranks = (1.0, 2.0) if probability is None else soft_ranks(probability)
    meta = _others(row, {"prompt", "chosen", "rejected", "probability", "votes"})
    return Comparison(prompt, (chosen, rejected), ranks, probability, meta)


def _others(row: Raw, used: set[str]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in used}


def _probability(row: Raw, responses: int) -> float | None:
    """P(the first is better) from a column of votes or of that name; None where there is neither."""
    value, votes = row.get("probability"), row.get("votes")
    if value is None and votes is None:
        return None
    if responses != 2:
        raise BadRow(f"votes or a probability for {responses} responses; expected them for two only, else ranks")
    probability = votes_of(votes) if value is None else number_of(value, "probability")
    if not 0 <= probability <= 1:
        raise BadRow(f"probability is {probability}; expected a number from 0 to 1")
    return probability


def _refuse_contradiction(ranks: tuple[float, ...], probability: float | None) -> None:
    if probability is not None and (probability - 0.5) * (ranks[1] - ranks[0]) < 0:
        raise BadRow(
            f"the first response is better with probability {probability:.3g} and the order says otherwise; "
            "expected them to agree"
        )


def _pair(row: Raw) -> tuple[Prompt, str, str]:
    """Prompt, chosen, rejected; whole conversations hold the prompt themselves, also beside a column of text."""
    chosen, rejected = row["chosen"], row["rejected"]
    whole = isinstance(chosen, list) and isinstance(rejected, list)
    if "prompt" in row and not (whole and isinstance(row["prompt"], str)):
        return prompt_of(row["prompt"]), response_of(chosen, "chosen"), response_of(rejected, "rejected")
    if whole:
        return _shared_conversation(chosen, rejected)
    return _shared_text(text_of(chosen, "chosen"), text_of(rejected, "rejected"))


def _shared_conversation(chosen: Any, rejected: Any) -> tuple[Prompt, str, str]:
    first = conversation_of(chosen, "chosen", "assistant")
    second = conversation_of(rejected, "rejected", "assistant")
    if first[:-1] != second[:-1]:
        raise BadRow("chosen and rejected differ before the last message; expected one prompt for both")
    if len(first) < 2:
        raise BadRow("chosen and rejected hold no prompt; expected a prompt column, or the prompt's messages in both")
    return first[:-1], first[-1]["content"], second[-1]["content"]


def _shared_text(chosen: str, rejected: str) -> tuple[Prompt, str, str]:
    """Split where the last "\\n\\nAssistant:" of both ends, else before the first word that differs."""
    shared = os.path.commonprefix([chosen, rejected])  # noqa: RUF071
    turn = shared.rfind(_LAST_TURN)
    cut = turn + len(_LAST_TURN) if turn >= 0 else max(shared.rfind(" "), shared.rfind("\n")) + 1
    prompt, responses = chosen[:cut], (chosen[cut:], rejected[cut:])
    if not prompt.strip():
        raise BadRow("chosen and rejected share no beginning; expected a prompt column, or the prompt in both")
    if turn >= 0 and any(_LAST_TURN in response for response in responses):
        raise BadRow("chosen and rejected differ before the last turn; expected one prompt for both")
    return prompt, text_of(responses[0], "chosen"), text_of(responses[1], "rejected")


def _before_reply(messages: list[Message]) -> Prompt:
    """The messages up to the last user turn; a reply after it is left out."""
    prompt = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    return conversation_of(prompt, "the conversation before the reply", "user")


def _completion(row: Raw) -> Demonstration:
    return Demonstration(prompt_of(row["prompt"]), response_of(row["completion"], "completion"))


def _instruction_output(row: Raw) -> Demonstration:
    return Demonstration(instruction_of(row), text_of(row["output"], "output"))


_DEMONSTRATIONS: Shapes[Demonstration] = {
    ("messages",): lambda row: Demonstration(messages=conversation_of(row["messages"], "messages", "assistant")),
    ("conversations",): lambda row: Demonstration(messages=sharegpt_of(row["conversations"], "assistant")),
    ("prompt", "completion"): _completion,
    ("instruction", "output"): _instruction_output,
    ("input", "output"): _instruction_output,
    ("text",): lambda row: Demonstration(completion=text_of(row["text"], "text")),
}
_COMPARISONS: Shapes[Comparison] = {
    ("prompt", "responses", "ranks"): _ranking,
    ("prompt", "responses", "votes"): _ranking,
    ("prompt", "responses", "probability"): _ranking,
    ("prompt", "chosen", "rejected"): _chosen_rejected,
    ("chosen", "rejected"): _chosen_rejected,
}
_PROMPTS: Shapes[Prompt] = {
    ("messages",): lambda row: _before_reply(conversation_of(row["messages"], "messages", None)),
    ("conversations",): lambda row: _before_reply(sharegpt_of(row["conversations"], None)),
    ("chosen", "rejected"): lambda row: _pair(row)[0],
    ("prompt",): lambda row: prompt_of(row["prompt"]),
    ("instruction",): instruction_of,
    ("input",): instruction_of,
}
