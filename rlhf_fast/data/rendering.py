"""What is said and kept of how rows became text: through which chat template, or as plain text.

announce    a line at the start of a stage, with one row as the model sees it
Rendering   which of the two a model was trained on; in `rendering.json` beside its tokenizer
compare     a line where a model is given what it was not trained on
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.encode import Encoded, prompt_text, shown_example
from rlhf_fast.data.replies import begun_by_template
from rlhf_fast.data.schema import Comparison, Demonstration, Prompt, PromptRow
from rlhf_fast.runtime.files import read_record, write_record
from rlhf_fast.runtime.shown import notices
from rlhf_kernels import IGNORED

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
    def of(cls, tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Prompt]) -> Rendering:
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
        return replace(self, chat=self.chat or before.chat, text=self.text or before.text, chat_template=template)

    def save(self, folder: Path) -> None:
        write_record(folder / FILE, self)

    @property
    def end(self) -> str:
        return "EOS" if self.stop_token_id is None else f"the token {self.stop_token_id} (stop_token_id)"

    def __str__(self) -> str:
        ways = ["through the chat template"] * self.chat + ["as plain text"] * self.text
        return " and ".join(ways)


def trained_stop(path: str) -> int | None:
    """The token that a model's training ended responses with instead of EOS, where it is recorded."""
    rendering = Rendering.read(path)
    return None if rendering is None else rendering.stop_token_id


def compare(rendering: Rendering, source: str, *paths: str | None) -> None:
    """Say of each model in `paths` whose training is known where the prompts of `source` are rendered otherwise."""
    for path in filter(None, paths):
        before = Rendering.read(path)
        if before is None:
            continue
        if (rendering.chat and not before.chat) or (rendering.text and not before.text):
            notices.warning("%s was trained on prompts %s; those of %s go in %s", path, before, source, rendering)
        elif rendering.chat and rendering.chat_template != before.chat_template:
            notices.warning("%s was trained through another chat template than that of the prompts of %s", path, source)
        if rendering.stop_token_id != before.stop_token_id:
            notices.warning("%s was trained on responses that end with %s; here %s", path, before.end, rendering.end)


def announce(
    tokenizer: PreTrainedTokenizerBase, rendering: Rendering, noun: str, source: str, ids: list[int], labels: list[int]
) -> None:
    """One line: how the rows of `source` are rendered, and one of them as the model sees it."""
    plain = "; the tokenizer's chat template is not used" if not rendering.chat and tokenizer.chat_template else ""
    learnt = ", what is learnt between « and »" if any(label != IGNORED for label in labels) else ""
    example = shown_example(tokenizer, ids, labels)
    notices.info("%s: %ss go to the model %s%s. The first%s:\n  %s", source, noun, rendering, plain, learnt, example)


def announce_prompts(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[PromptRow], ids: Sequence[list[int]], source: str
) -> Rendering:
    """`announce` for prompts, and what the template or the spaces at their end do; returns their rendering."""
    rendering = Rendering.of(tokenizer, [row.prompt for row in rows])
    announce(tokenizer, rendering, "prompt", source, ids[0], [IGNORED] * len(ids[0]))
    plain = [row.prompt for row in rows if isinstance(row.prompt, str)]
    spaced = sum(prompt_text(tokenizer, prompt) != prompt for prompt in plain)
    if spaced:
        notices.info(
            "%s: %d of %d prompts end with spaces, which are left to the response: a word's token holds the space "
            "before it",
            source, spaced, len(rows),
        )  # fmt: skip
    chats = ((row.prompt, row.tools) for row in rows if not isinstance(row.prompt, str))
    begun = next((begun_by_template(tokenizer, messages, tools) for messages, tools in chats), "")
    if begun:
        notices.warning("the chat template begins each response with %r, which is no part of the response", begun)
    return rendering


def announce_demonstrations(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Demonstration], parts: Sequence[Sequence[Encoded]], source: str
) -> Rendering:
    """`announce` for demonstrations, each encoded as one or several sequences; returns their rendering."""
    rendering = Rendering.of(tokenizer, [row.prompt if row.messages is None else row.messages for row in rows])
    announce(tokenizer, rendering, "demonstration", source, parts[0][0].input_ids, parts[0][0].labels)
    split = [len(sequences) for sequences in parts if len(sequences) > 1]
    if split:
        notices.info(
            "%s: the chat template rewrites earlier turns in %d of %d conversations; their turns are learnt as %d "
            "sequences, each after what generation would start from",
            source, len(split), len(rows), sum(split),
        )  # fmt: skip
    replies = (
        (reply, [part.input_ids for part in sequences])
        for row, sequences in zip(rows, parts, strict=True) for reply in _contents(row)
    )  # fmt: skip
    _announce_trimmed(tokenizer, replies, source)
    return rendering


def announce_comparisons(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Comparison], sequences: Sequence[list[list[int]]],
    prompts: Sequence[list[int]], source: str,
) -> Rendering:  # fmt: skip
    """`announce` for comparisons, of which `sequences` are a prompt with each response; returns their rendering."""
    rendering = Rendering.of(tokenizer, [row.prompt for row in rows])
    first, context = sequences[0][0], len(prompts[0])
    announce(tokenizer, rendering, "comparison", source, first, [IGNORED] * context + first[context:])
    replies = (
        (reply, [ids]) for row, several in zip(rows, sequences, strict=True) if not isinstance(row.prompt, str)
        for reply, ids in zip(row.responses, several, strict=True)
    )  # fmt: skip
    _announce_trimmed(tokenizer, replies, source)
    return rendering


def _announce_trimmed(
    tokenizer: PreTrainedTokenizerBase, replies: Iterable[tuple[str, list[list[int]]]], source: str
) -> None:
    """Say how many of the replies have white space around them that is not in the sequences they were encoded in."""
    trimmed = sum(
        reply != reply.strip() and not any(reply in tokenizer.decode(ids) for ids in sequences)
        for reply, sequences in replies
    )
    if trimmed:
        notices.info("%s: the chat template trims the white space around %d replies", source, trimmed)


def _contents(row: Demonstration) -> list[str]:
    """What a template renders as replies."""
    if row.messages is not None:
        turns = [m for m in row.messages if m["role"] == "assistant" and m.get("weight") != 0]
        return [turn.get("content") or "" for turn in turns]
    return [] if isinstance(row.prompt, str) else [row.completion]


def _digest(tokenizer: PreTrainedTokenizerBase) -> str:
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()
