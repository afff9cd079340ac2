"""Conversations of a raw row, turn by turn: who speaks, what is said, which tools are called, what is learnt; and what
stands before a row's question in other columns (a system text, a history), which makes a conversation of it.

Turns are in OpenAI's form (role, content) or in ShareGPT's (from, value). A bad turn raises `BadRow` with the reason.
"""

from __future__ import annotations

import json
from typing import Any

from rlhf_fast.data.schema import Message, Prompt
from rlhf_fast.data.sources import BadRow, Raw
from rlhf_fast.data.values import QUESTION, absent, json_of, shown, text_of, tools_of

ROLES = ("system", "user", "assistant", "tool")
SHAREGPT = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
    "function_call": "assistant", "observation": "tool", "tool": "tool",
}  # fmt: skip
WEIGHTS = frozenset(("weight", "train", "training", "loss"))
"""What says in OpenAI's and ShareGPT's, Axolotl's and ms-swift's rows whether a turn is learnt."""
_KEPT = ("tool_call_id", "name", "reasoning_content")
READ = frozenset(("role", "content", "from", "value", "tool_calls", *_KEPT, *WEIGHTS))
_MEDIA = "rows are text only. Leave the row out"
REFUSED = {
    "function_call": "calls are read from tool_calls, in OpenAI's present form",
    "refusal": "write what the assistant should say into content",
    "thinking": "thoughts are read from reasoning_content, which the chat template has to show",
    "reasoning": "thoughts are read from reasoning_content, which the chat template has to show",
    "train_detail": "a turn is learnt as a whole or not at all. Say so with weight 1 or 0",
    "training_detail": "a turn is learnt as a whole or not at all. Say so with weight 1 or 0",
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos"), _MEDIA),
}
"""Keys of a turn that would change what is learnt and are not served, each with what to do."""
SYSTEM = ("system", "system_prompt", "system_message")
CONTEXT = (*SYSTEM, "history", "tools")
"""Columns that make a conversation of a question: what stands before it, and what may be called."""


def conversation_of(value: Any, name: str, ends_with: str | None) -> list[Message]:
    """Messages of the schema. ends_with: who speaks last (a user may be a tool that answers); None: anyone."""
    if not isinstance(value, list) or not value:
        raise BadRow(f"{name} is {shown(value)}; expected a list of messages")
    messages = [_message(turn, name) for turn in value]
    last = messages[-1]["role"]
    if ends_with is not None and last != ends_with and (ends_with, last) != ("user", "tool"):
        raise BadRow(f"{name} ends with {last}; expected a last message of the {ends_with}")
    return messages


def prompt_of(value: Any) -> Prompt:
    """Text, or a conversation that ends with the user."""
    return unweighted(conversation_of(value, "prompt", "user")) if isinstance(value, list) else text_of(value, "prompt")


def response_of(value: Any, name: str) -> str:
    """Text, or one assistant message, also in a list, that is nothing but text."""
    if not isinstance(value, (list, dict)):
        return text_of(value, name)
    messages = conversation_of([value] if isinstance(value, dict) else value, name, "assistant")
    if len(messages) != 1:
        raise BadRow(f"{name} has {len(messages)} messages; expected one, of the assistant")
    return only_text(messages[0], name)


def only_text(message: Message, name: str) -> str:
    """Its content; a reply with more to it has no place where responses are texts."""
    more = sorted(message.keys() - {"role", "content"})
    if more:
        raise BadRow(f"{name} has {', '.join(more)}; expected text only. Leave the row out")
    return str(message["content"])


def unweighted(messages: list[Message]) -> list[Message]:
    """Without weights: what a prompt's turns are."""
    return [{key: value for key, value in message.items() if key != "weight"} for message in messages]


def learnt(messages: list[Message], name: str) -> list[Message]:
    """The messages, if any turn of them is learnt."""
    if not any(message["role"] == "assistant" and message.get("weight", 1) for message in messages):
        raise BadRow(f"{name} has weight 0 on every turn of the assistant, so nothing is learnt; leave the row out")
    return messages


def unread_keys(value: Any) -> set[str]:
    """Keys of a conversation's turns that say something and are not read."""
    turns = [turn for turn in value if isinstance(turn, dict)] if isinstance(value, list) else []
    return {str(key) for turn in turns for key in turn.keys() - READ if not absent(turn[key])}


def has_context(row: Raw) -> bool:
    """Whether a row's prompt is a conversation for what stands beside it."""
    return bool(_system(row) or history_of(row) or tools_of(row.get("tools")))


def in_context(row: Raw, prompt: Prompt) -> Prompt:
    """The prompt, or the conversation that ends with it where the row has a system text, a history or tools."""
    if not has_context(row):
        return prompt
    if isinstance(prompt, str):
        return [*_system(row), *history_of(row), {"role": "user", "content": prompt}]
    return after_system(row, prompt)


def after_system(row: Raw, messages: list[Message]) -> list[Message]:
    """A conversation with the row's system text as its first message."""
    if history_of(row):
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


def history_of(row: Raw) -> list[Message]:
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


def refuse_other_question(row: Raw, prompt: Prompt) -> None:
    """A question beside a prompt that is not part of it would be lost."""
    told = prompt if isinstance(prompt, str) else "\n".join(str(message["content"]) for message in prompt)
    for name in (*QUESTION, "input"):
        if not absent(row.get(name)) and not (isinstance(row[name], str) and row[name].strip() in told):
            raise BadRow(
                f"{name} stands beside the prompt and is no part of it: {shown(row[name])}. Write it into the prompt, "
                "or rename the column if it is only a note"
            )


def _message(turn: Any, name: str) -> Message:
    if not isinstance(turn, dict):
        raise BadRow(f"{name} holds {shown(turn)}; expected messages with role and content, or from and value")
    for key in turn.keys() & REFUSED.keys():
        if not absent(turn[key]):
            raise BadRow(f"a message of {name} has {key}, which is not read: {REFUSED[key]}")
    role = _role(turn, name)
    calls = _calls(turn, role)
    content = None if turn.get("from") == "function_call" else turn.get("content", turn.get("value"))
    message: Message = {"role": role, "content": _content(content, role, calls is not None)}
    if calls is not None:
        message["tool_calls"] = calls
    for key in (key for key in _KEPT if key in turn):
        if not absent(turn[key]):
            message[key] = text_of(turn[key], f"{key} of a message of the {role}")
    if role != "assistant" and "reasoning_content" in message:
        raise BadRow(f"a message of the {role} has reasoning_content; expected it on the assistant's")
    return message | _weight(turn, role)


def _role(turn: dict[str, Any], name: str) -> str:
    if "from" in turn and turn.get("role") is None:
        if not isinstance(turn["from"], str) or turn["from"] not in SHAREGPT:
            raise BadRow(f"a turn is from {shown(turn['from'])}; expected {', '.join(SHAREGPT)}")
        return SHAREGPT[turn["from"]]
    role = turn.get("role")
    if role not in ROLES:
        raise BadRow(f"{name} holds {shown(turn)}; expected content and a role of {', '.join(ROLES)}")
    return str(role)


def _content(value: Any, role: str, has_calls: bool) -> str | None:
    """Text, also in parts; what calls tools may have none, and a tool's answer may be empty."""
    if isinstance(value, list):
        for part in value:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise BadRow(f"a message of the {role} holds {shown(part)}; expected parts of type text: {_MEDIA}")
        value = "".join(part["text"] for part in value)
    if has_calls and absent(value):
        return value if isinstance(value, str) else None
    if role == "tool" and isinstance(value, str):
        return value
    return text_of(value, f"the content of a message of the {role}")


def _calls(turn: dict[str, Any], role: str) -> list[dict[str, Any]] | None:
    """Tool calls with arguments as dicts, which is what templates take."""
    value = turn.get("value") if turn.get("from") == "function_call" else turn.get("tool_calls")
    if absent(value) and turn.get("from") != "function_call":
        return None
    if role != "assistant":
        raise BadRow(f"a message of the {role} has tool_calls; expected them on the assistant's")
    calls = json_of(value, "tool_calls")
    return [_call(call) for call in (calls if isinstance(calls, list) else [calls])] or None


def _call(value: Any) -> dict[str, Any]:
    call = json_of(value, "a tool call")
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRow(f"tool_calls holds {shown(value)}; expected a function with name and arguments")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = json_of(arguments, f"arguments of {function['name']}") if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise BadRow(f"arguments of {function['name']} is {shown(arguments)}; expected a JSON object")
    inner = function | {"arguments": arguments}
    return call | {"function": inner} if "function" in call else {"type": "function", "function": inner}


def _weight(turn: dict[str, Any], role: str) -> dict[str, int]:
    """{"weight": 0} for an assistant's turn that is not learnt."""
    given = {key: turn[key] for key in turn.keys() & WEIGHTS if not absent(turn[key])}
    if any(not isinstance(value, (bool, int, float)) or value not in (0, 1) for value in given.values()):
        raise BadRow(f"a message of the {role} has {_pairs(given)}; expected 0 (shown only) or 1 (learnt)")
    if len(set(map(int, given.values()))) > 1:
        raise BadRow(f"a message of the {role} has {_pairs(given)}; expected them to agree")
    if role != "assistant" and any(given.values()):
        raise BadRow(
            f"a message of the {role} has {_pairs(given)}; only the assistant's turns are learnt. Leave it out"
        )
    return {"weight": 0} if role == "assistant" and given and not any(given.values()) else {}


def _pairs(given: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {json.dumps(value) if isinstance(value, bool) else shown(value)}" for key, value in given.items()
    )
