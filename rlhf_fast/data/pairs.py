"""Comparisons: n-way rankings, and pairs whose prompt is in its own column, in another one, or in both responses."""

from __future__ import annotations

import os
from typing import Any

from rlhf_fast.data.schema import Comparison, Prompt
from rlhf_fast.data.sources import BadRow, Raw
from rlhf_fast.data.turns import (
    conversation_of,
    has_context,
    in_context,
    only_text,
    prompt_of,
    refuse_other_question,
    response_of,
    unweighted,
)
from rlhf_fast.data.values import QUESTION, absent, instruction_of, number_of, shown, text_of, tools_of, votes_of

_LAST_TURN = "\n\nAssistant:"


def soft_ranks(probability: float) -> tuple[float, float]:
    """Ranks of two responses of which the first is the better one with `probability`."""
    return (1.0, 1.0) if probability == 0.5 else (1.0, 2.0) if probability > 0.5 else (2.0, 1.0)


def ranking(row: Raw) -> Comparison:
    responses = row["responses"]
    if not isinstance(responses, list) or len(responses) < 2:
        raise BadRow(f"responses is {shown(responses)}; expected a list of two or more")
    probability = _probability(row, len(responses))
    ranks = row.get("ranks", soft_ranks(probability) if probability is not None else None)
    if not isinstance(ranks, (list, tuple)) or len(ranks) != len(responses):
        raise BadRow(
            f"ranks is {shown(ranks)} for {len(responses)} responses; expected one number each, lower is better"
        )
    values = tuple(number_of(rank, "a rank") for rank in ranks)
    _refuse_contradiction(values, probability)
    texts = tuple(response_of(response, "a response") for response in responses)
    prompt = prompt_of(row["prompt"])
    refuse_other_question(row, prompt)
    return _compared(row, prompt, texts, values, probability)


def chosen_rejected(row: Raw) -> Comparison:
    prompt, chosen, rejected = pair(row)
    refuse_other_question(row, prompt)
    probability = _probability(row, 2)
    _refuse_contradiction((1.0, 2.0), probability)
    ranks = (1.0, 2.0) if probability is None else soft_ranks(probability)
    return _compared(row, prompt, (chosen, rejected), ranks, probability)


def _compared(
    row: Raw, prompt: Prompt, responses: tuple[str, ...], ranks: tuple[float, ...], probability: float | None
) -> Comparison:
    return Comparison(in_context(row, prompt), responses, ranks, probability, tools=tools_of(row.get("tools")))


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


def pair(row: Raw) -> tuple[Prompt, str, str]:
    """Prompt, chosen, rejected. Whole conversations hold the prompt, also beside a column of text; else it is in its
    own column, in that of a question or a conversation, or in both responses themselves."""
    chosen, rejected = row["chosen"], row["rejected"]
    lists = isinstance(chosen, list) and isinstance(rejected, list)
    if lists and not isinstance(row.get("prompt"), list) and max(len(chosen), len(rejected)) > 1:
        return _shared_conversation(chosen, rejected)
    prompt = _prompt_of_pair(row)
    if prompt is not None:
        return prompt, response_of(chosen, "chosen"), response_of(rejected, "rejected")
    if lists:
        return _shared_conversation(chosen, rejected)
    if has_context(row):
        raise BadRow("system, history or tools stand beside responses that hold their prompt; expected a prompt column")
    return _shared_text(row, text_of(chosen, "chosen"), text_of(rejected, "rejected"))


def _prompt_of_pair(row: Raw) -> Prompt | None:
    """From prompt, messages or conversations, or a question; None where only the responses can hold it."""
    talks = [name for name in ("messages", "conversations") if not absent(row.get(name))]
    prompt = row.get("prompt")
    if prompt is None:
        prompt = question_of_pair(row)
    if not talks:
        return None if prompt is None and "prompt" not in row else prompt_of(prompt)
    talk = conversation_of(row[talks[0]], talks[0], None)
    if talk[-1]["role"] == "assistant" and talk[-1]["content"] == response_of(row["chosen"], "chosen"):
        talk = talk[:-1]
    before = unweighted(conversation_of(talk, f"{talks[0]} before chosen and rejected", "user"))
    turns = [message for message in before if message["role"] != "system"]
    if not absent(prompt) and prompt not in (before, turns) and [prompt] != [message["content"] for message in turns]:
        raise BadRow(f"{talks[0]} and another prompt stand beside chosen and rejected; expected one of them")
    return before


def question_of_pair(row: Raw) -> str | None:
    """The question beside a pair without a prompt, unless both responses hold it; None where there is none."""
    if all(absent(row.get(name)) for name in (*QUESTION, "input")):
        return None
    responses = row.get("chosen"), row.get("rejected")
    if any(isinstance(response, list) and len(response) > 1 for response in responses):
        return None
    question = instruction_of(row)
    texts = [response for response in responses if isinstance(response, str)]
    return None if texts and question in os.path.commonprefix(texts) else question  # noqa: RUF071


def _shared_conversation(chosen: Any, rejected: Any) -> tuple[Prompt, str, str]:
    first = conversation_of(chosen, "chosen", "assistant")
    second = conversation_of(rejected, "rejected", "assistant")
    prompt = unweighted(first[:-1])
    if prompt != unweighted(second[:-1]):
        raise BadRow("chosen and rejected differ before the last message; expected one prompt for both")
    if not prompt:
        raise BadRow("chosen and rejected hold no prompt; expected a prompt column, or the prompt's messages in both")
    return prompt, only_text(first[-1], "chosen"), only_text(second[-1], "rejected")


def _shared_text(row: Raw, chosen: str, rejected: str) -> tuple[Prompt, str, str]:
    """Split where the last "\\n\\nAssistant:" of both ends, else before the first word that differs.

    The latter is a guess, which another text of the row speaks against: it may be the prompt.
    """
    shared = os.path.commonprefix([chosen, rejected])  # noqa: RUF071
    turn = shared.rfind(_LAST_TURN)
    cut = turn + len(_LAST_TURN) if turn >= 0 else max(shared.rfind(" "), shared.rfind("\n")) + 1
    prompt, responses = chosen[:cut], (chosen[cut:], rejected[cut:])
    texts = {name: value for name, value in row.items() if isinstance(value, str) and len(value.split()) > 2}
    other = [name for name, value in texts.items() if name not in ("chosen", "rejected") and value not in prompt]
    if turn < 0 and other:
        raise BadRow(
            f"there is no prompt column, and {', '.join(other)} may hold the prompt. Name its column prompt, or remove "
            "it if both responses begin with their prompt"
        )
    if not prompt.strip():
        raise BadRow("chosen and rejected share no beginning; expected a prompt column, or the prompt in both")
    if turn >= 0 and any(_LAST_TURN in response for response in responses):
        raise BadRow("chosen and rejected differ before the last turn; expected one prompt for both")
    return prompt, text_of(responses[0], "chosen"), text_of(responses[1], "rejected")


def columns_of_pair(row: Raw) -> set[str]:
    """Where its prompt may be, and the responses and votes."""
    used = {"prompt", "chosen", "rejected", "votes", "probability"}
    if row.get("prompt") is None and question_of_pair(row) is not None:
        used |= {*QUESTION, "input"}
    whole = isinstance(row.get("chosen"), list) and len(row["chosen"]) > 1
    return used if whole else used | {"messages", "conversations"}
