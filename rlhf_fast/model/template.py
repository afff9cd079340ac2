"""Conversations through a tokenizer's chat template, and the special tokens that texts hold already.

render        a conversation as text; a template that fails or does not end is refused in words
without_end   a text without the EOS that it ends with, as the end is added where a reply is encoded
opening       the ids that a tokenizer puts before plain text: none where the text begins with them

A chat template is a program that came with a model. It runs in transformers' sandbox, under a time limit here.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlhf_fast.runtime.errors import UsageError

SECONDS = 5.0  # of one rendering, which takes a millisecond or so
_POLL = 0.25


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    tools: list[dict[str, Any]] | None = None,
    *,
    open_reply: bool = False,
    name: str = "the chat template",
    remedy: str = "give another template with --chat_template_path",
) -> str:
    """`messages` as the chat template writes them, with the beginning of a reply where `open_reply`.

    Their key `weight` is ours and not shown to the template. name, remedy: for what an error says.
    Raises `UsageError` where there is no template, and where it refuses the conversation or fails in whatever way;
    `Endless` where it takes longer than `SECONDS`.
    """
    if tokenizer.chat_template is None:
        raise UsageError(
            "the rows are conversations and the tokenizer has no chat template. Give one with --chat_template_path, "
            "or use plain-text prompts."
        )
    shown = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
    try:
        with _time_limit():
            text = tokenizer.apply_chat_template(
                shown, tools=list(tools) if tools else None, tokenize=False, add_generation_prompt=open_reply
            )
    except _Overdue as error:
        raise Endless(f"{name} has not ended within {SECONDS:g} seconds. {remedy.capitalize()}.") from error
    except Exception as error:  # of any kind: the template is a program of somebody else's
        roles = ", ".join(message["role"] for message in messages) or "no turn"
        what = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
        raise UsageError(f"{name} refuses a conversation of {roles}: {what}. Change the row, or {remedy}.") from error
    return str(text)


def without_end(text: str, eos: str | None) -> str:
    """`text` without the EOS that it ends with, however often, nor the white space after it."""
    while eos and (cut := text.rstrip()).endswith(eos):
        text = cut[: -len(eos)]
    return text


def opening(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of the special tokens that the tokenizer puts before plain `text` (a BOS, say), and none where `text` begins
    with them. Raises `UsageError` for a tokenizer whose ids of the text itself change with them."""
    text = text[:200]  # however long it is
    plain = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    whole = list(tokenizer(text, verbose=False)["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return [] if plain[:start] == whole[:start] else whole[:start]
    raise UsageError(
        f"the tokenizer gives other tokens for {text[:60]!r} when it adds its special tokens; expected the same tokens "
        "between them. Use another tokenizer."
    )


class Endless(UsageError):
    """A chat template that does not end: no row can be rendered."""


class _Overdue(Exception):
    """Raised in a thread whose rendering takes too long."""


class _Watch:
    """Renderings that go on, by thread, and a thread of its own that ends those which take too long.

    It raises in the thread that renders, which works in the main thread and in any other, and leaves nothing running
    behind. It looks a few times a second, and ends itself when nothing is rendered.
    """

    def __init__(self) -> None:
        self.lock, self.started = threading.Lock(), dict[int, float]()
        self.thread: threading.Thread | None = None

    def begin(self) -> None:
        with self.lock:
            self.started[threading.get_ident()] = time.monotonic()
            if self.thread is None or not self.thread.is_alive():  # after a fork it is there and dead
                self.thread = threading.Thread(target=self._watch, name="chat template time limit", daemon=True)
                self.thread.start()

    def end(self) -> None:
        """The rendering of this thread is over; an exception that was sent too late is taken back."""
        with self.lock:
            ident = threading.get_ident()
            if self.started.pop(ident, None) is None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), None)

    def _watch(self) -> None:
        idle = 0
        while idle < 8:
            time.sleep(_POLL)
            with self.lock:
                for ident, since in list(self.started.items()):
                    if time.monotonic() - since > SECONDS:
                        del self.started[ident]
                        sent = ctypes.py_object(_Overdue)
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), sent)
                idle = 0 if self.started else idle + 1
                if idle == 8:
                    self.thread = None


_watch = _Watch()


@contextmanager
def _time_limit() -> Iterator[None]:
    _watch.begin()
    try:
        yield
    finally:
        _watch.end()
