"""From a raw row in one of the formats people have to a row of ours; the columns that are there tell the format.

Formats: TRL's (plain or conversational, the prompt of a pair explicit or implicit), n-way rankings, ShareGPT, Alpaca's
instruction+input+output with LLaMA-Factory's system, history and tools, OpenAI's messages, plain text. A row that does
not fit, or that holds what would change its meaning and is not served (`REFUSALS`), raises `BadRow` with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

from rlhf_fast.data.pairs import chosen_rejected, columns_of_pair, pair, ranking
from rlhf_fast.data.schema import Comparison, Demonstration, Message, Prompt, PromptRow
from rlhf_fast.data.sources import BadRow, Raw
from rlhf_fast.data.turns import (
    CONTEXT,
    after_system,
    conversation_of,
    has_context,
    history_of,
    in_context,
    learnt,
    only_text,
    prompt_of,
    refuse_other_question,
    unread_keys,
    unweighted,
)
from rlhf_fast.data.values import QUESTION, absent, instruction_of, shown, text_of, tools_of

T = TypeVar("T")
Kind = Literal["demonstrations", "comparisons", "prompts"]
Shape = tuple[str, ...]
Shapes = dict[Shape, Callable[[Raw], T]]


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


_REFUSED: dict[Kind, dict[str, Refusal]] = {
    kind: {name: refusal for refusal in REFUSALS if kind in refusal.kinds for name in refusal.columns}
    for kind in get_args(Kind)
}


def demonstration(row: Raw) -> Demonstration:
    return _DEMONSTRATIONS[_served_shape(row, "demonstrations")](row)


def comparison(row: Raw) -> Comparison:
    """Its `meta` are the columns that it was not read from."""
    shape = _served_shape(row, "comparisons")
    return replace(_COMPARISONS[shape](row), meta=_others(row, _used(row, shape)))


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
    keys = {f"{name}.{key}" for name in used & row.keys() for key in unread_keys(row[name])}
    columns = set() if kind == "prompts" else row.keys() - used - _REFUSED[kind].keys()
    return keys | {name for name in columns if not absent(row[name])}


def gather(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The columns of all rows, by name in order: a value for each row, None where it has none."""
    kept = list(rows)
    names = sorted({name for row in kept for name in row}, key=str)
    return {name: [row.get(name) for row in kept] for name in names}


def _served_shape(row: Raw, kind: Kind) -> Shape:
    """The row's shape. Raises `BadRow` for a column that would change what the row means and is not served."""
    shape = _shape(row, kind)
    for name in row.keys() & _REFUSED[kind].keys():
        refusal = _REFUSED[kind][name]
        if shape != refusal.unless and not absent(row[name]) and refusal.counts(row[name]):
            raise BadRow(f"the column {name} is {shown(row[name])} and is not served: {refusal.why}")
    return shape


def _shape(row: Raw, kind: Kind) -> Shape:
    """The first shape whose columns are all there."""
    shapes = _SHAPES[kind]
    filled = {name for name, value in row.items() if value is not None}
    for there in (filled, row.keys()):  # a column that is null in this row belongs to other rows of the data set
        for columns in shapes:
            if there >= {*columns}:
                return columns
    names = ", ".join(list(row)[:20]) + (" ..." if len(row) > 20 else "")
    raise BadRow(f"columns are {names}; expected {', or '.join(map('+'.join, shapes))}")


def _used(row: Raw, shape: Shape) -> set[str]:
    """The columns that a row of this shape is read from."""
    used = {*shape, *CONTEXT}
    if "responses" in shape:
        return used | {"ranks", "votes", "probability"}
    if "chosen" in shape:
        return used | columns_of_pair(row)
    return used | {*QUESTION, "input"} if {*QUESTION, "input"} & used else used


def _others(row: Raw, used: set[str]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in used}


# Demonstrations


def _messages(row: Raw, name: str) -> Demonstration:
    messages = after_system(row, conversation_of(row[name], name, "assistant"))
    return Demonstration(messages=learnt(messages, name), tools=tools_of(row.get("tools")))


def _completion(row: Raw) -> Demonstration:
    prompt, completion = prompt_of(row["prompt"]), row["completion"]
    refuse_other_question(row, prompt)
    if not isinstance(completion, (list, dict)):
        return _answered(row, prompt, text_of(completion, "completion"))
    turns = conversation_of([completion] if isinstance(completion, dict) else completion, "completion", "assistant")
    if len(turns) > 1 and not any(turn["role"] == "tool" for turn in turns):
        raise BadRow(f"completion has {len(turns)} messages; expected one, of the assistant")
    if len(turns) == 1 and turns[0].keys() <= {"role", "content"}:
        return _answered(row, prompt, only_text(turns[0], "completion"))
    before = in_context(row, prompt)
    if isinstance(before, str):
        before = [{"role": "user", "content": before}]
    shown_only = [turn | ({"weight": 0} if turn["role"] == "assistant" else {}) for turn in before]
    return Demonstration(messages=[*shown_only, *learnt(turns, "completion")], tools=tools_of(row.get("tools")))


def _instruction_output(row: Raw) -> Demonstration:
    return _answered(row, instruction_of(row), text_of(row["output"], "output"))


def _answered(row: Raw, prompt: Prompt, answer: str) -> Demonstration:
    """The answers of a history are learnt too, as LLaMA-Factory does: it is a conversation in another form."""
    tools, before = tools_of(row.get("tools")), in_context(row, prompt)
    if isinstance(before, str) or not history_of(row):
        return Demonstration(before, answer, tools=tools)
    return Demonstration(messages=[*before, {"role": "assistant", "content": answer}], tools=tools)


def _text(row: Raw) -> Demonstration:
    if has_context(row):
        raise BadRow(
            f"one of {', '.join(CONTEXT)} stands beside a text, which is learnt as it is. Give messages instead"
        )
    return Demonstration(completion=text_of(row["text"], "text"))


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
    ("prompt", "responses", "ranks"): ranking,
    ("prompt", "responses", "votes"): ranking,
    ("prompt", "responses", "probability"): ranking,
    ("prompt", "chosen", "rejected"): chosen_rejected,
    ("chosen", "rejected"): chosen_rejected,
}
_PROMPTS: Shapes[Prompt] = {
    ("messages",): lambda row: in_context(row, _before_reply(conversation_of(row["messages"], "messages", None))),
    ("conversations",): lambda row: in_context(
        row, _before_reply(conversation_of(row["conversations"], "conversations", None))
    ),
    ("chosen", "rejected"): lambda row: in_context(row, pair(row)[0]),
    ("prompt",): lambda row: in_context(row, prompt_of(row["prompt"])),
    **{(name,): lambda row: in_context(row, instruction_of(row)) for name in (*QUESTION, "input")},
}
_SHAPES: Mapping[Kind, Iterable[Shape]] = {
    "demonstrations": _DEMONSTRATIONS, "comparisons": _COMPARISONS, "prompts": _PROMPTS,
}  # fmt: skip
