"""A reply as the chat template renders it, and a template that cannot serve refused before anything is trained.

A template gives two texts for a turn: the prompt that generation starts from, and the conversation with the reply in
it. The reply is what the second has beyond the first, up to the EOS. So what is learnt is the conversation as it is
rendered, token for token; where the second does not go on from the first, there is no such reply and the row is
refused. How a template treats roles and keys is looked at once for each shape of a conversation, with made-up words.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.schema import Message, Tools
from rlhf_fast.model.template import render
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.shown import notices

ANSWER: Message = {"role": "assistant", "content": "answer"}
_READ = ("tool_calls", "reasoning_content")  # a template that does not show them loses what the row says
_LINKS = ("tool_call_id", "name")
_checked: set[tuple[object, ...]] = set()  # shapes of conversations that a template serves


def prompt_of(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: Tools | None) -> str:
    """The text that a reply to `messages` follows. Raises `UsageError` where the template, given a reply, would render
    something else before it; the template may begin the reply itself (`begun_by_template`)."""
    text = render(tokenizer, messages, tools, open_reply=True)
    answered = [*messages, ANSWER]
    check_template(tokenizer, answered, tools)
    whole = render(tokenizer, answered, tools)
    if not whole.startswith(text[: len(text) - len(_opened(text, whole))]):
        raise _differs(text, whole)
    return text


def begun_by_template(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: Tools | None) -> str:
    """What the generation prompt begins the reply with and a rendered reply without thoughts does not: "<think>\\n" of
    models that always think."""
    text = render(tokenizer, messages, tools, open_reply=True)
    return _opened(text, render(tokenizer, [*messages, ANSWER], tools))


def _opened(text: str, whole: str) -> str:
    shared = len(os.path.commonprefix([text, whole]))  # noqa: RUF071
    return text[shared:] if whole[shared:].lstrip().startswith(str(ANSWER["content"])) else ""


def reply_of(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: Tools | None, before: str, eos: str
) -> str:
    """What the last of `messages`, the assistant's, adds to `before`, without the EOS and the white space after that.

    Raises `UsageError` with the difference where the template renders the conversation otherwise than `before`, a reply
    and EOS, or a reply in other words than the row has; white space is the template's.
    """
    check_template(tokenizer, messages, tools)
    whole = render(tokenizer, messages, tools)
    if not whole.startswith(before):
        raise _differs(before, whole)
    rest = whole[len(before) :].rstrip()
    reply = rest.removesuffix(eos)
    if reply == rest:
        raise UsageError(
            f"the chat template ends a reply with {rest[-40:]!r}; expected the EOS {eos!r}. Write the EOS after the "
            "reply in the template (--chat_template_path)."
        )
    content = messages[-1].get("content")
    if content and not _holds(before, reply, content):
        raise UsageError(
            f"the chat template rewrites a reply: {_around(content.strip(), reply.strip())} becomes "
            f"{_around(reply.strip(), content.strip())}. Change the row, or give another template with "
            "--chat_template_path."
        )
    return reply


def check_template(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: Tools | None) -> None:
    """Raise `UsageError` where the template leaves out a turn or a key, has no generation prompt, or ends a reply
    otherwise than with EOS. Looked at once for each shape: the roles and keys of `messages`, which end with a reply."""
    turns = tuple((m["role"], bool(m.get("content")), *sorted(m.keys() & {*_READ, *_LINKS})) for m in messages)
    shape = (str(tokenizer.chat_template), tokenizer.eos_token, bool(tools), turns)
    if shape in _checked:
        return
    marked = [m | {"content": _mark(turn)} if m.get("content") else m for turn, m in enumerate(messages)]
    text = render(tokenizer, marked, tools)
    for turn, message in enumerate(marked):
        if message.get("content") and _mark(turn) not in text:
            raise UsageError(
                f"the chat template does not show turn {turn + 1} of {len(messages)}, of the {message['role']}, as it "
                "is written. Take the turn out, or give a template that shows it with --chat_template_path."
            )
    _refuse_unread(tokenizer, marked, tools, text)
    _check_edges(tokenizer, marked[:-1], tools)
    _checked.add(shape)


def _mark(turn: int) -> str:
    return f"turn{turn}x"


def _refuse_unread(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: Tools | None, text: str) -> None:
    """Keys that change nothing: refused by name, or said where they are only links between turns."""
    if tools and _renders(tokenizer, messages, None) == text:
        raise UsageError(
            "the row has `tools` and the chat template does not show them. Take them out, or give a template that "
            "does with --chat_template_path."
        )
    for turn, message in enumerate(messages):
        before = messages[:turn]
        for key in [key for key in (*_READ, *_LINKS) if key in message]:
            without = {name: value for name, value in message.items() if name != key}
            if _renders(tokenizer, [*before, without], tools) != _renders(tokenizer, [*before, message], tools):
                continue
            if key in _READ:
                raise UsageError(
                    f"turn {turn + 1} of {len(messages)}, of the {message['role']}, has `{key}` and the chat template "
                    "does not show it. Take it out, or give a template that does with --chat_template_path."
                )
            said = ("not shown", str(tokenizer.chat_template), key)
            if said not in _checked:
                _checked.add(said)
                notices.warning("the chat template does not show `%s` of the %s's turns", key, message["role"])


def _renders(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: Tools | None) -> str | None:
    """The text, or None where the template refuses such a conversation."""
    try:
        return render(tokenizer, messages, tools)
    except UsageError:
        return None


def _check_edges(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: Tools | None) -> None:
    """What stands before and after a reply to `messages`."""
    word = _mark(len(messages))
    whole = render(tokenizer, [*messages, {"role": "assistant", "content": word}], tools)
    text = render(tokenizer, messages, tools, open_reply=True)
    head, _, tail = whole.rpartition(word)
    lead = head[len(text) :] if head.startswith(text) else ""
    if lead.strip() and text == _renders(tokenizer, messages, tools):
        raise UsageError(
            f"the chat template has no generation prompt: it writes {lead!r} before a reply, which a prompt would "
            "lack. Write that at its end under {% if add_generation_prompt %} (--chat_template_path)."
        )
    eos, closing = tokenizer.eos_token, tail.strip()
    if eos is None or closing == eos:
        return
    other = next((token for token in special_texts(tokenizer) if closing.startswith(token) and token != eos), None)
    if other is not None:
        raise UsageError(
            f"the chat template ends a reply with {other!r} and the tokenizer's EOS is {eos!r}, so responses would end "
            f"in two ways. Set eos_token to {other!r} in the model folder's tokenizer_config.json."
        )
    what = f"writes {closing.removeprefix(eos)!r} after a reply's EOS" if closing.startswith(eos) else "has no end"
    what = f"ends a reply with {closing!r}" if closing and not closing.startswith(eos) else what
    raise UsageError(
        f"the chat template {what}: prompt, reply and EOS are {word + eos!r} at their end where it renders "
        f"{(word + tail)[:80]!r}. Write the EOS {eos!r} after a reply, and nothing else (--chat_template_path)."
    )


@lru_cache(maxsize=8)
def special_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The tokenizer's special tokens as they are written."""
    return tuple(str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)


def _holds(before: str, reply: str, content: str) -> bool:
    """Whether the reply has the words of the row. White space is left aside, and the template may have put the
    beginning at the end of the prompt."""
    words = _squeezed([content])
    tail = _squeezed([before[-2 * len(content) - 100 :]])[-len(words) :]
    found = (tail + _squeezed([reply])).rfind(words)
    return found >= 0 and (found + len(words) > len(tail) or not words)


def _squeezed(texts: Iterable[str]) -> str:
    return "".join(word for text in texts for word in text.split())


def _differs(before: str, whole: str) -> UsageError:
    return UsageError(
        f"the chat template renders the conversation otherwise than its prompt for a reply: {_around(whole, before)} "
        f"where the prompt has {_around(before, whole)}. Change the row so that they agree, or give another template "
        "with --chat_template_path."
    )


def _around(text: str, other: str) -> str:
    """`text` near its first difference from `other`."""
    at = len(os.path.commonprefix([text, other]))  # noqa: RUF071
    start, end = max(0, at - 30), at + 40
    return repr(("..." if start else "") + text[start:end] + ("..." if end < len(text) else ""))
