"""From rows to token ids, the same for every stage: a prompt, a reply to it, and the EOS that ends the reply.

encode_prompt          what a policy responds to
encode_replies         a prompt and one or more replies to it (demonstrations, comparisons)
encode_demonstration   what SFT learns of a row: one sequence, or several where the template rewrites earlier turns
shown_example          a sequence as a person reads it, with what is learnt marked

A conversation goes through the chat template (`replies`), plain text is taken as it is. Prompt, reply and EOS are
together the conversation as the template renders it whole. Everything works from lengths, never from pad ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.fitting import TooLong, refuse_far_too_long
from rlhf_fast.data.replies import prompt_of, reply_of, special_texts
from rlhf_fast.data.schema import Demonstration, Message, Prompt, Tools
from rlhf_fast.model.template import opening, render, without_end
from rlhf_fast.runtime.errors import UsageError
from rlhf_kernels import IGNORED


@dataclass(frozen=True)
class Encoded:
    """Token ids, and labels that are the same ids where they are learnt and -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, tools: Tools | None = None) -> str:
    """The text that the model sees: a conversation through the chat template, plain text as it is, but for the spaces
    at its end, which belong to the reply: `ĠParis` is a token, and `Ġ` with `Paris` after it are others."""
    if isinstance(prompt, str):
        _refuse_tools(tools)
        return prompt[: len(prompt) - _spaces(prompt)]
    return prompt_of(tokenizer, _ended(tokenizer, prompt), tools)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, tools: Tools | None = None, max_length: int | None = None
) -> list[int]:
    """Ids of a prompt, as generation and training use it. Raises `UsageError` if it is empty or over `max_length`
    (`TooLong`), or if the chat template cannot serve it.

    Special tokens that the tokenizer itself adds (a BOS, say) are added to plain text only, and not where it begins
    with them: a chat template has them.
    """
    _refuse_empty(prompt)
    text = prompt_text(tokenizer, prompt, tools)
    refuse_far_too_long(tokenizer, [text], max_length)
    ids = [*(opening(tokenizer, text) if isinstance(prompt, str) else []), *_ids(tokenizer, text)]
    if max_length is not None and len(ids) > max_length:
        raise TooLong(
            f"the prompt {text[:60]!r}... has {len(ids)} tokens and {max_length} fit beside the response. Shorten it, "
            "raise max_length (up to the model's context), or lower response_length."
        )
    return ids


def encode_replies(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, replies: Sequence[str | Message], *,
    tools: Tools | None = None, max_length: int | None = None,
) -> tuple[list[int], list[list[int]]]:  # fmt: skip
    """Ids of a prompt, those of `encode_prompt`, and of each reply to it with the one EOS that ends it.

    A reply is a text or the assistant's message. Raises `UsageError` for an empty prompt, a tokenizer without EOS, a
    reply that goes on after its EOS, and where the chat template renders the conversation otherwise; `TooLong` for a
    text so far over `max_length` that it is not tokenised. Whether a sequence is over it is left to the caller.
    """
    _refuse_empty(prompt)
    if isinstance(prompt, str):
        return _replies(tokenizer, prompt, replies, tools, max_length)
    turns = [reply if isinstance(reply, dict) else {"role": "assistant", "content": reply} for reply in replies]
    return _replies(tokenizer, _ended(tokenizer, prompt), _ended(tokenizer, turns), tools, max_length)


def encode_demonstration(tokenizer: PreTrainedTokenizerBase, row: Demonstration, *, max_length: int) -> list[Encoded]:
    """Sequences with labels on what is learnt: a completion, or the assistant's turns but those with weight 0.

    Each turn stands after exactly the ids that generation would start from. Where these begin with the sequence so far,
    as with most templates, all turns share one sequence; where the template rewrites earlier turns (leaves out their
    thoughts, say), a turn begins a sequence of its own.
    Raises `UsageError` for a row that cannot be rendered, `TooLong` for a sequence of more than `max_length` tokens.
    """
    if row.messages is not None:
        parts = _conversation(tokenizer, row.messages, row.tools, max_length)
    else:
        encode = encode_replies if row.prompt else _replies
        context, (reply,) = encode(tokenizer, row.prompt, [row.completion], tools=row.tools, max_length=max_length)
        parts = [_after(context, reply)]
    longest = max(len(part.input_ids) for part in parts)
    if longest > max_length:
        raise TooLong(
            f"a demonstration has {longest} tokens, over max_length={max_length}. Raise max_length "
            "(up to the model's context), or shorten the row."
        )
    return parts


def shown_example(tokenizer: PreTrainedTokenizerBase, ids: list[int], labels: list[int]) -> str:
    """The sequence as one line of text, special tokens included; what is learnt stands between « and », and what is
    long is cut in the middle."""
    runs = []
    for learnt, run in groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] != IGNORED):
        text = tokenizer.decode([token for token, _ in run], skip_special_tokens=False)
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
        text = text if len(text) <= 140 else f"{text[:70]} ... {text[-60:]}"
        runs.append(f"«{text}»" if learnt else text)
    return "".join(runs if len(runs) <= 4 else [*runs[:2], " ... ", *runs[-2:]])


def _conversation(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: Tools | None, max_length: int
) -> list[Encoded]:
    parts: list[Encoded] = []
    messages = _ended(tokenizer, messages)
    for turn, message in enumerate(messages):
        if message["role"] != "assistant" or message.get("weight") == 0:
            continue
        if turn == 0:
            raise UsageError(
                "a conversation begins with the assistant, whose turn has no prompt. Put the user's turn before it, or "
                "give it weight 0, so that it is shown and not learnt."
            )
        context, (reply,) = _replies(tokenizer, messages[:turn], [message], tools, max_length)
        begun = parts[-1] if parts else Encoded([], [])
        done = len(begun.input_ids)
        added = _after(context[done:], reply)
        if parts and context[:done] == begun.input_ids:
            parts[-1] = Encoded(begun.input_ids + added.input_ids, begun.labels + added.labels)
        else:
            parts.append(_after(context, reply))
    if not parts:
        raise UsageError("no turn of the assistant is learnt: all have weight 0. Give one of them weight 1.")
    return parts


def _replies(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, replies: Sequence[str | Message], tools: Tools | None,
    max_length: int | None,
) -> tuple[list[int], list[list[int]]]:  # fmt: skip
    """As `encode_replies`, of conversations without EOS in them, or of a text, also of "": what is learnt from its
    first token on."""
    eos = tokenizer.eos_token
    if eos is None or tokenizer.eos_token_id is None:
        raise UsageError(
            "the tokenizer has no EOS token, so a response would never end. "
            "Set eos_token in the model folder's tokenizer_config.json."
        )
    if isinstance(prompt, str):
        before = prompt_text(tokenizer, prompt, tools)
        texts = [prompt[len(before) :] + _own(tokenizer, str(reply)) for reply in replies]
        start = opening(tokenizer, before or texts[0])
    else:
        before, start = render(tokenizer, prompt, tools, open_reply=True), []
        turns = (reply for reply in replies if isinstance(reply, dict))
        texts = [reply_of(tokenizer, [*prompt, turn], tools, before, eos) for turn in turns]
    if prompt and any(eos in text for text in texts):
        raise UsageError(
            f"a reply goes on after the EOS {eos!r} in it, where it would end. Cut it there, or split the row."
        )
    refuse_far_too_long(tokenizer, [before, *texts], max_length)
    context = [*start, *_ids(tokenizer, before)]
    return context, [[*_continued(tokenizer, context, before, text), tokenizer.eos_token_id] for text in texts]


def _continued(tokenizer: PreTrainedTokenizerBase, context: list[int], before: str, text: str) -> list[int]:
    """Ids of `text` after `before`, whose ids `context` ends with: as of one text, or of their own where the tokenizer
    joins the two at the edge."""
    edge = before[max(0, before.rfind(" ", 0, -100)) :]  # of a long prompt the end will do, from a word's beginning
    known = _ids(tokenizer, edge)
    if not known or context[-len(known) :] != known:
        edge, known = before, _ids(tokenizer, before)
    whole = _ids(tokenizer, edge + text)
    if whole[: len(known)] == known:
        return whole[len(known) :]
    for anchor in ("", "\n"):  # some tokenizers put a space before whatever begins a text
        ids = _ids(tokenizer, anchor + text)[len(_ids(tokenizer, anchor)) :]
        if tokenizer.decode(known + ids) == tokenizer.decode(whole):
            return ids
    if "".join(str(tokenizer.decode(whole)).split()) != "".join((edge + text).split()):
        return _ids(tokenizer, text)  # one of whole words, that has none for the two joined
    raise UsageError(
        f"the tokenizer joins the prompt's end {before[-20:]!r} and the reply's beginning {text[:20]!r} to other "
        "tokens, and gives none for the reply alone. End the prompt with white space or a newline."
    )


def _own(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A reply of a row without the EOS that it ends with. Raises `UsageError` for another special token there."""
    text = without_end(text, tokenizer.eos_token)
    bare, special = text.rstrip(), special_texts(tokenizer)
    if bare.endswith(special):
        other = next(token for token in special if bare.endswith(token))
        raise UsageError(
            f"a reply ends with the special token {other!r}, and replies are ended with the EOS "
            f"{tokenizer.eos_token!r} here, so it would end twice. Take {other!r} out of the row."
        )
    return text


def _ended(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[Message]:
    """Messages whose assistant's contents have no EOS of their own: the template writes it."""
    return [
        m | {"content": _own(tokenizer, m["content"])} if m["role"] == "assistant" and m.get("content") else m
        for m in messages
    ]


def _spaces(text: str) -> int:
    """How many characters of white space `text` ends with, in its last line."""
    white = text[len(text.rstrip()) :]
    return len(white) - 1 - max(white.rfind("\n"), white.rfind("\r"))


def _refuse_empty(prompt: Prompt) -> None:
    last = {"content": prompt} if isinstance(prompt, str) else prompt[-1] if prompt else {}
    if not (last.get("content") or "").strip() and not (last.get("role") == "tool" or last.get("tool_calls")):
        raise UsageError("a prompt is empty; expected some text. Remove the row.")


def _refuse_tools(tools: Tools | None) -> None:
    if tools:
        raise UsageError("the row has `tools`, which plain text has no place for. Give its prompt as messages.")


def _after(context: list[int], response: list[int]) -> Encoded:
    return Encoded(context + response, [IGNORED] * len(context) + response)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
