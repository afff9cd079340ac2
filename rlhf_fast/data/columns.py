"""From a raw row in one of the formats people have to a row of ours; the columns that are there tell the format.

Formats: TRL's (plain or conversational, the prompt of a pair explicit or implicit), n-way rankings, ShareGPT, Alpaca's
instruction+input+output with LLaMA-Factory's system, history and tools, OpenAI's messages, plain text. A row that does
not fit, or that holds what would change its meaning and is not served (`REFUSALS`), raises `BadRow` with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from rlhf_fast.data.schema import Comparison, Demonstration, Message, Prompt, PromptRow
from rlhf_fast.data.sources import BadRow, Raw
from rlhf_fast.data.turns import conversation_of, learnt, only_text, prompt_of, response_of, unread_keys, unweighted
from rlhf_fast.data.values import (
    QUESTION,
    absent,
    instruction_of,
    json_of,
    number_of,
    shown,
    text_of,
    tools_of,
    votes_of,
)

T = TypeVar("T")
Kind = Literal["demonstrations", "comparisons", "prompts"]
Shape = tuple[str, ...]
Shapes = dict[Shape, Callable[[Raw], T]]
SYSTEM = ("system", "system_prompt", "system_message")
CONTEXT = (*SYSTEM, "history", "tools")
"""Columns that make a conversation of a question: what stands before it, and what may be called."""
_LAST_TURN = "\n\nAssistant:"


@dataclass(frozen=True)
class Refusal:
    """Columns of rows of some kinds that would change what a row means, and are not served.

    counts: for which values that say something; the others change nothing. unless: a shape that they do not change.
    """

    columns: tuple[str, ...]
    kinds: tuple[Kind, ...]
    why: str
    counts: Callable[[Any], bool] = lambda value: True
    unless: Shape = ()


def _is_false(value: Any) -> bool:
    return (isinstance(value, (bool, int, float)) and value == 0) or str(value).strip().lower() in ("false", "0")


def _is_weight(value: Any) -> bool:
    """Another number than 1, or false."""
    try:
        return float(value) != 1
    except (TypeError, ValueError, OverflowError):
        return _is_false(value)


REFUSALS = (
    Refusal(
        ("image", "images", "audio", "audios", "video", "videos"), ("demonstrations", "comparisons", "prompts"),
        "rows are text only here. Leave such rows out, or rename a column that is only a note",
    ),
    Refusal(
        ("chat_template", "chat_template_kwargs"), ("demonstrations", "comparisons", "prompts"),
        "all rows go through one chat template, without arguments. Give it with chat_template_path",
    ),
    Refusal(
        ("functions", "function_call"), ("demonstrations", "comparisons", "prompts"),
        "functions are read from tools, and calls from the messages' tool_calls",
    ),
    Refusal(
        ("label", "kto_tag"), ("demonstrations",),
        "it says that the completion is a bad one, and it would be learnt. Leave such rows out (on_bad_row=skip), or "
        "train a reward model from pairs",
        _is_false,
        unless=("text",),  # of a text it is a class, not whether it is a good completion
    ),
    Refusal(
        ("weight", "sample_weight", "loss_weight", "train"), ("demonstrations", "comparisons"),
        "rows are not weighted. Leave out what is not to be learnt (weight 0 or 1 may stand on a turn of messages)",
        _is_weight,
    ),
    Refusal(("margin",), ("comparisons",), "the loss has no margin. Give votes or a probability, or remove the column"),
    Refusal(
        ("reasoning_content", "thinking"), ("demonstrations", "comparisons"),
        "thoughts are read from reasoning_content of an assistant's message",
    ),
    Refusal(
        ("completion_mask", "assistant_masks", "loss_mask", "mask"), ("demonstrations",),
        "which tokens are learnt is told by turns: give an assistant's message weight 0 to show it only",
    ),
    Refusal(("suffix",), ("demonstrations", "prompts"), "text is not filled into a gap; write one prompt"),
)  # fmt: skip


def demonstration(row: Raw) -> Demonstration:
    return _DEMONSTRATIONS[_served_shape(row, "demonstrations")](row)


def comparison(row: Raw) -> Comparison:
    return _COMPARISONS[_served_shape(row, "comparisons")](row)


def prompt_row(row: Raw) -> PromptRow:
    """The prompt of a row in any format, and the columns that it was not read from."""
    shape = _served_shape(row, "prompts")
    used = _used(row, shape) - {"chosen", "rejected"}
    return PromptRow(_PROMPTS[shape](row), _others(row, used), tools_of(row.get("tools")))


def unread(row: Raw, kind: Kind) -> set[str]:
    """Columns, and keys of turns as column.key, that a usable row has and that nothing is read from.

    Of prompts only keys: their other columns go to reward functions.
    """
    used = _used(row, _shape(row, kind))
    keys = {f"{name}.{key}" for name in used for key in unread_keys(row.get(name))}
    neutral = {name for refusal in REFUSALS if kind in refusal.kinds for name in refusal.columns}
    columns = set() if kind == "prompts" else row.keys() - used - neutral
    return keys | {name for name in columns if not absent(row[name])}


def has_context(row: Raw) -> bool:
    """Whether a row's prompt is a conversation for what stands beside it."""
    return bool(_system(row) or _history(row) or tools_of(row.get("tools")))


def gather(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The columns of all rows, by name in order: a value for each row, None where it has none."""
    kept = list(rows)
    names = sorted({name for row in kept for name in row}, key=str)
    return {name: [row.get(name) for row in kept] for name in names}


def soft_ranks(probability: float) -> tuple[float, float]:
    """Ranks of two responses of which the first is the better one with `probability`."""
    return (1.0, 1.0) if probability == 0.5 else (1.0, 2.0) if probability > 0.5 else (2.0, 1.0)


def _served_shape(row: Raw, kind: Kind) -> Shape:
    """The row's shape. Raises `BadRow` for a column that would change what the row means and is not served."""
    shape = _shape(row, kind)
    for refusal in REFUSALS:
        if kind not in refusal.kinds or shape == refusal.unless:
            continue
        for name in refusal.columns:
            if not absent(row.get(name)) and refusal.counts(row[name]):
                raise BadRow(f"the column {name} is {shown(row[name])} and is not served: {refusal.why}")
    return shape


def _shape(row: Raw, kind: Kind) -> Shape:
    """The first shape whose columns are all there."""
    shapes = _SHAPES[kind]
    for columns in shapes:
        if all(column in row for column in columns):
            return columns
    names = ", ".join(list(row)[:20]) + (" ..." if len(row) > 20 else "")
    raise BadRow(f"columns are {names}; expected {', or '.join(map('+'.join, shapes))}")


def _used(row: Raw, shape: Shape) -> set[str]:
    """The columns that a row of this shape is read from."""
    used = {*shape, *CONTEXT}
    if {"chosen", "responses"} & used:
        used |= {"prompt", "ranks", "votes", "probability"}
    asked = "chosen" in shape and "prompt" not in row and _question_of_pair(row) is not None
    return used | {*QUESTION, "input"} if asked or {*QUESTION, "input"} & {*shape} else used


def _others(row: Raw, used: set[str]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in used}


# What stands before a prompt


def _in_context(row: Raw, prompt: Prompt) -> Prompt:
    """The prompt, or the conversation that ends with it where the row has a system text, a history or tools."""
    if not has_context(row):
        return prompt
    if isinstance(prompt, str):
        return [*_system(row), *_history(row), {"role": "user", "content": prompt}]
    return _after_system(row, prompt)


def _after_system(row: Raw, messages: list[Message]) -> list[Message]:
    """A conversation with the row's system text as its first message."""
    if _history(row):
        raise BadRow("history stands beside a conversation; expected all turns in one of them")
    system, opening = _system(row), [message for message in messages[:1] if message["role"] == "system"]
    if system and opening and system != opening:
        raise BadRow("the conversation begins with another system message than the system column; expected one of them")
    return messages if opening else [*system, *messages]


def _system(row: Raw) -> list[Message]:
    given = [name for name in SYSTEM if not absent(row.get(name))]
    texts = {text_of(row[name], name) for name in given}
    if len(texts) > 1:
        raise BadRow(f"{' and '.join(given)} hold different texts; expected one system text")
    return [{"role": "system", "content": text} for text in texts]


def _history(row: Raw) -> list[Message]:
    """[question, answer] pairs, or messages, before the question."""
    history = [] if absent(row.get("history")) else json_of(row["history"], "history")
    if history == []:
        return []
    if isinstance(history, list) and all(isinstance(turn, dict) for turn in history):
        return conversation_of(history, "history", "assistant")
    if not isinstance(history, list) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in history):
        raise BadRow(f"history is {shown(history)}; expected a list of [question, answer] pairs")
    turns = [(role, text) for pair in history for role, text in zip(("user", "assistant"), pair, strict=True)]
    return [{"role": role, "content": text_of(text, f"a turn of the {role} in history")} for role, text in turns]


def _refuse_other_question(row: Raw, prompt: Prompt) -> None:
    """A question beside a prompt that is not part of it would be lost."""
    told = prompt if isinstance(prompt, str) else "\n".join(str(message["content"]) for message in prompt)
    for name in (*QUESTION, "input"):
        if not absent(row.get(name)) and not (isinstance(row[name], str) and row[name].strip() in told):
            raise BadRow(
                f"{name} stands beside the prompt and is no part of it: {shown(row[name])}. Write it into the prompt, "
                "or rename the column if it is only a note"
            )


# Demonstrations


def _messages(row: Raw, name: str) -> Demonstration:
    messages = _after_system(row, conversation_of(row[name], name, "assistant"))
    return Demonstration(messages=learnt(messages, name), tools=tools_of(row.get("tools")))


def _completion(row: Raw) -> Demonstration:
    prompt, completion = prompt_of(row["prompt"]), row["completion"]
    _refuse_other_question(row, prompt)
    if not isinstance(completion, list):
        return _answered(row, prompt, text_of(completion, "completion"))
    turns = conversation_of(completion, "completion", "assistant")
    if len(turns) > 1 and not any(turn["role"] == "tool" for turn in turns):
        raise BadRow(f"completion has {len(turns)} messages; expected one, of the assistant")
    if len(turns) == 1 and turns[0].keys() <= {"role", "content"}:
        return _answered(row, prompt, only_text(turns[0], "completion"))
    before = _in_context(row, prompt)
    if isinstance(before, str):
        before = [{"role": "user", "content": before}]
    shown_only = [turn | ({"weight": 0} if turn["role"] == "assistant" else {}) for turn in before]
    return Demonstration(messages=[*shown_only, *learnt(turns, "completion")], tools=tools_of(row.get("tools")))


def _instruction_output(row: Raw) -> Demonstration:
    return _answered(row, instruction_of(row), text_of(row["output"], "output"))


def _answered(row: Raw, prompt: Prompt, answer: str) -> Demonstration:
    """The answers of a history are learnt too, as LLaMA-Factory does: it is a conversation in another form."""
    tools, before = tools_of(row.get("tools")), _in_context(row, prompt)
    if isinstance(before, str) or not _history(row):
        return Demonstration(before, answer, tools=tools)
    return Demonstration(messages=[*before, {"role": "assistant", "content": answer}], tools=tools)


def _text(row: Raw) -> Demonstration:
    if has_context(row):
        raise BadRow(
            f"one of {', '.join(CONTEXT)} stands beside a text, which is learnt as it is. Give messages instead"
        )
    return Demonstration(completion=text_of(row["text"], "text"))


# Comparisons


def _ranking(row: Raw) -> Comparison:
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
    _refuse_other_question(row, prompt)
    return _compared(row, prompt, texts, values, probability)


def _chosen_rejected(row: Raw) -> Comparison:
    prompt, chosen, rejected = _pair(row)
    _refuse_other_question(row, prompt)
    probability = _probability(row, 2)
    _refuse_contradiction((1.0, 2.0), probability)
    ranks = (1.0, 2.0) if probability is None else soft_ranks(probability)
    return _compared(row, prompt, (chosen, rejected), ranks, probability)


def _compared(
    row: Raw, prompt: Prompt, responses: tuple[str, ...], ranks: tuple[float, ...], probability: float | None
) -> Comparison:
    meta = _others(row, _used(row, _shape(row, "comparisons")))
    return Comparison(_in_context(row, prompt), responses, ranks, probability, meta, tools_of(row.get("tools")))


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
    """Prompt, chosen, rejected. The prompt is in its column, in that of a question, or in both responses themselves;
    whole conversations hold it also beside a column of text."""
    chosen, rejected = row["chosen"], row["rejected"]
    whole = isinstance(chosen, list) and isinstance(rejected, list)
    if whole and not isinstance(row.get("prompt"), list) and max(len(chosen), len(rejected)) > 1:
        return _shared_conversation(chosen, rejected)
    question = row["prompt"] if "prompt" in row else _question_of_pair(row)
    if "prompt" in row or question is not None:
        return prompt_of(question), response_of(chosen, "chosen"), response_of(rejected, "rejected")
    if whole:
        return _shared_conversation(chosen, rejected)
    if has_context(row):
        raise BadRow("system, history or tools stand beside responses that hold their prompt; expected a prompt column")
    return _shared_text(text_of(chosen, "chosen"), text_of(rejected, "rejected"))


def _question_of_pair(row: Raw) -> str | None:
    """The question beside a pair without a prompt, unless both responses begin with it; None where there is none."""
    if all(absent(row.get(name)) for name in (*QUESTION, "input")):
        return None
    question, pair = instruction_of(row), (row.get("chosen"), row.get("rejected"))
    texts = [part for part in pair if isinstance(part, str)]
    if not texts:
        return question if all(isinstance(part, list) and len(part) == 1 for part in pair) else None
    return None if question in os.path.commonprefix(texts) else question  # noqa: RUF071


def _shared_conversation(chosen: Any, rejected: Any) -> tuple[Prompt, str, str]:
    first = conversation_of(chosen, "chosen", "assistant")
    second = conversation_of(rejected, "rejected", "assistant")
    prompt = unweighted(first[:-1])
    if prompt != unweighted(second[:-1]):
        raise BadRow("chosen and rejected differ before the last message; expected one prompt for both")
    if not prompt:
        raise BadRow("chosen and rejected hold no prompt; expected a prompt column, or the prompt's messages in both")
    return prompt, only_text(first[-1], "chosen"), only_text(second[-1], "rejected")


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


# Prompts


def _before_reply(messages: list[Message]) -> Prompt:
    """The messages up to the last user turn; a reply after it is left out."""
    prompt = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    return unweighted(conversation_of(prompt, "the conversation before the reply", "user"))


_DEMONSTRATIONS: Shapes[Demonstration] = {
    ("messages",): lambda row: _messages(row, "messages"),
    ("conversations",): lambda row: _messages(row, "conversations"),
    ("prompt", "completion"): _completion,
    ("instruction", "output"): _instruction_output,
    ("input", "output"): _instruction_output,
    ("text",): _text,
}
_COMPARISONS: Shapes[Comparison] = {
    ("prompt", "responses", "ranks"): _ranking,
    ("prompt", "responses", "votes"): _ranking,
    ("prompt", "responses", "probability"): _ranking,
    ("prompt", "chosen", "rejected"): _chosen_rejected,
    ("chosen", "rejected"): _chosen_rejected,
}
_PROMPTS: Shapes[Prompt] = {
    ("messages",): lambda row: _in_context(row, _before_reply(conversation_of(row["messages"], "messages", None))),
    ("conversations",): lambda row: _in_context(
        row, _before_reply(conversation_of(row["conversations"], "conversations", None))
    ),
    ("chosen", "rejected"): lambda row: _in_context(row, _pair(row)[0]),
    ("prompt",): lambda row: _in_context(row, prompt_of(row["prompt"])),
    **{(name,): lambda row: _in_context(row, instruction_of(row)) for name in (*QUESTION, "input")},
}
_SHAPES: Mapping[Kind, Iterable[Shape]] = {
    "demonstrations": _DEMONSTRATIONS, "comparisons": _COMPARISONS, "prompts": _PROMPTS,
}  # fmt: skip
