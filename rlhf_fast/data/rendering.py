"""What is said and kept of how rows became text: through which chat template, or as plain text.

announce    a line at the start of a stage, with one row as the model sees it
Rendering   which of the two a model was trained on; in `rendering.json` beside its tokenizer
compare     a line where a model is given what it was not trained on
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.encode import IGNORED, prompt_text, shown_example
from rlhf_fast.data.schema import Demonstration, Message, Prompt
from rlhf_fast.data.replies import ANSWER, NOTICES, opened
from rlhf_fast.model.template import render
from rlhf_fast.runtime.records import read_record, write_record

FILE = "rendering.json"


@dataclass(frozen=True)
class Rendering:
    """How the prompts of a model's training were rendered: `chat` through a template, whose SHA-256 is
    `chat_template`, and `text` as they are. `stop_token_id`: what ended a response instead of the tokenizer's EOS."""

    chat: bool
    text: bool
    chat_template: str | None = None
    stop_token_id: int | None = None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Any]) -> Rendering:
        """That of prompts that are texts, or lists of messages."""
        kinds = {isinstance(prompt, str) for prompt in prompts}
        return cls(False in kinds, True in kinds, _digest(tokenizer) if False in kinds else None)

    @classmethod
    def read(cls, path: str | Path) -> Rendering | None:
        """That of the model or adapter in the folder `path`; None where nothing is known, as of a base model."""
        file = Path(path) / FILE
        return read_record(file, cls) if file.is_file() else None

    def after(self, before: Rendering | None) -> Rendering:
        """That of a model trained like this which had been trained like `before`."""
        if before is None:
            return self
        template = self.chat_template or before.chat_template
        return Rendering(self.chat or before.chat, self.text or before.text, template, self.stop_token_id)

    def save(self, folder: Path) -> None:
        write_record(folder / FILE, self)

    def __str__(self) -> str:
        ways = ["through the chat template"] * self.chat + ["as plain text"] * self.text
        return " and ".join(ways)


def compare(rendering: Rendering, source: str, *paths: str | None) -> None:
    """Say of each model in `paths` whose training is known where the prompts of `source` are rendered otherwise."""
    for path in filter(None, paths):
        before = Rendering.read(path)
        if before is None:
            continue
        if (rendering.chat and not before.chat) or (rendering.text and not before.text):
            NOTICES.warning("%s was trained on prompts %s; those of %s go in %s", path, before, source, rendering)
        elif rendering.chat and rendering.chat_template != before.chat_template:
            NOTICES.warning(
                "%s was trained through another chat template than the one that the prompts of %s go through", path, source
            )


def announce(
    tokenizer: PreTrainedTokenizerBase, rendering: Rendering, noun: str, source: str, ids: list[int], labels: list[int]
) -> None:
    """One line: how the rows of `source` are rendered, and one of them as the model sees it."""
    plain = "; the tokenizer's chat template is not used" if not rendering.chat and tokenizer.chat_template else ""
    learnt = ", what is learnt between « and »" if any(label != IGNORED for label in labels) else ""
    example = shown_example(tokenizer, ids, labels)
    NOTICES.info("%s: %ss %s%s. One%s:\n  %s", source, noun, rendering, plain, learnt, example)


def announce_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], ids: Sequence[list[int]], source: str
) -> Rendering:
    """`announce` for prompts without replies, and what the template or their last spaces do; returns their rendering."""
    rendering = Rendering.of(tokenizer, prompts)
    announce(tokenizer, rendering, "prompt", source, ids[0], [IGNORED] * len(ids[0]))
    spaced = sum(isinstance(prompt, str) and prompt_text(tokenizer, prompt) != prompt for prompt in prompts)
    if spaced:
        NOTICES.info(
            "%s: %d of %d prompts end with spaces, which are left to the response: a word's token begins with its space",
            source, spaced, len(prompts),
        )  # fmt: skip
    chat = next((prompt for prompt in prompts if not isinstance(prompt, str)), None)
    if chat is not None:
        text = render(tokenizer, chat, open_reply=True)
        begun = opened(text, render(tokenizer, [*chat, ANSWER]))
        if begun:
            NOTICES.warning("the chat template begins each response with %r, which is no part of the response", begun)
    return rendering


def announce_demonstrations(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Demonstration], parts: Sequence[Sequence[Any]], source: str
) -> Rendering:
    """`announce` for demonstrations, each encoded as one or several sequences; returns their rendering."""
    rendering = Rendering.of(tokenizer, [row.messages or row.prompt for row in rows])
    announce(tokenizer, rendering, "demonstration", source, parts[0][0].input_ids, parts[0][0].labels)
    split = [len(sequences) for sequences in parts if len(sequences) > 1]
    if split:
        NOTICES.info(
            "%s: the chat template rewrites earlier turns in %d of %d conversations; their turns are learnt as %d "
            "sequences, each after what generation would start from",
            source, len(split), len(rows), sum(split),
        )  # fmt: skip
    announce_trimmed(tokenizer, (reply for row in rows for reply in _replies(row)), source)
    return rendering


def announce_trimmed(tokenizer: PreTrainedTokenizerBase, replies: Iterable[str], source: str) -> None:
    """Say how many replies in conversations have white space around them, where the template leaves it out."""
    spaced = sum(reply != reply.strip() for reply in replies)
    if spaced and "  answer \n" not in render(
        tokenizer, [{"role": "user", "content": "question"}, {"role": "assistant", "content": "  answer \n"}]
    ):
        NOTICES.info("%s: the chat template trims the white space around %d replies", source, spaced)


def _replies(row: Demonstration) -> list[str]:
    """The contents that a template renders as replies."""
    if row.messages is not None:
        turns: list[Message] = [m for m in row.messages if m["role"] == "assistant" and m.get("weight") != 0]
        return [turn.get("content") or "" for turn in turns]
    return [] if isinstance(row.prompt, str) else [row.completion]


def _digest(tokenizer: PreTrainedTokenizerBase) -> str:
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()
