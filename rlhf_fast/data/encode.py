"""From rows to token ids, the same at training and at generation. Everything works from lengths, never from pad ids."""

from __future__ import annotations

from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.schema import Demonstration, Message, Prompt
from rlhf_fast.runtime.errors import TooLong, UsageError

IGNORED = -100


@dataclass(frozen=True)
class Encoded:
    """Token ids, and labels that are the same ids where they are learnt and -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    """The text that the model sees: a conversation through the chat template, plain text as it is."""
    if isinstance(prompt, str):
        return prompt
    if tokenizer.chat_template is None:
        raise UsageError(
            "the rows are conversations and the tokenizer has no chat template. Give one with --chat_template_path, "
            "or use plain-text prompts."
        )
    return _render(tokenizer, prompt, open_reply=True)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, max_length: int | None = None) -> list[int]:
    """Ids of a prompt, as generation and training use it. Raises `UsageError` if it is empty or over `max_length`.

    Special tokens that the tokenizer itself adds (a BOS, say) are added to plain text only: a chat template has them.
    """
    last = prompt if isinstance(prompt, str) else prompt[-1]["content"] if prompt else ""
    if not last.strip():
        raise UsageError("a prompt is empty; expected some text. Remove the row.")
    text = prompt_text(tokenizer, prompt)
    if isinstance(prompt, str):
        ids = _open_text(tokenizer, text)
    else:
        _check_end_of_turn(tokenizer)
        ids = _ids(tokenizer, text)
    if max_length is not None and len(ids) > max_length:
        raise TooLong(
            f"the prompt {text[:60]!r}... has {len(ids)} tokens and {max_length} fit beside the response. Shorten it, "
            "raise max_length (up to the model's context), or lower response_length."
        )
    return ids


def encode_response(tokenizer: PreTrainedTokenizerBase, response: str) -> list[int]:
    """Ids of a response and the EOS that ends it. Raises `UsageError` for a tokenizer without EOS."""
    if tokenizer.eos_token_id is None:
        raise UsageError(
            "the tokenizer has no EOS token, so a response would never end. "
            "Set eos_token in the model folder's tokenizer_config.json."
        )
    return [*_ids(tokenizer, response), tokenizer.eos_token_id]


def encode_demonstration(tokenizer: PreTrainedTokenizerBase, row: Demonstration, *, max_length: int) -> Encoded:
    """Ids with labels on what is learnt: completions and assistant turns, each with the EOS that ends it.

    Raises `UsageError` for a row of more than `max_length` tokens.
    """
    if row.messages is not None:
        encoded = _conversation(tokenizer, row.messages)
    elif row.prompt:
        encoded = _after(encode_prompt(tokenizer, row.prompt), encode_response(tokenizer, row.completion))
    else:
        response = encode_response(tokenizer, row.completion)
        opened = _open_text(tokenizer, row.completion)  # the special tokens before the text, if any, then the text
        encoded = _after(opened[: len(opened) - (len(response) - 1)], response)
    if len(encoded.input_ids) > max_length:
        raise TooLong(
            f"a demonstration has {len(encoded.input_ids)} tokens, over max_length={max_length}. Raise max_length "
            "(up to the model's context), or shorten the row."
        )
    return encoded


def _conversation(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> Encoded:
    """Each assistant turn after exactly the ids that `encode_prompt` gives for the turns before it."""
    encoded = Encoded([], [])
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        context = encode_prompt(tokenizer, messages[:turn])
        done = len(encoded.input_ids)
        if context[:done] != encoded.input_ids:
            raise UsageError(
                "the chat template, or the tokenizer at the edge of a turn, changes earlier turns when a later one "
                "follows, so the turns cannot be learnt together. Give each turn as prompt and completion."
            )
        added = _after(context[done:], encode_response(tokenizer, message["content"]))
        encoded = Encoded(encoded.input_ids + added.input_ids, encoded.labels + added.labels)
    return encoded


def _after(context: list[int], response: list[int]) -> Encoded:
    return Encoded(context + response, [IGNORED] * len(context) + response)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _open_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Plain text with the special tokens that open it, without those that close it: a response goes on here."""
    plain = _ids(tokenizer, text)
    full = list(tokenizer(text, verbose=False)["input_ids"])
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[: start + len(plain)]
    raise UsageError(
        f"the tokenizer gives other tokens for {text[:60]!r} when it adds its special tokens; expected the same tokens "
        "between them. Use another tokenizer."
    )


def _check_end_of_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    """A response ends with EOS; a template that ends it with another special token would be trained against."""
    if tokenizer.eos_token is None:
        return
    user = {"role": "user", "content": "question"}
    text = _render(tokenizer, [user, {"role": "assistant", "content": "answer"}], open_reply=False)
    _, found, after = text.rpartition("answer")
    closing = _ids(tokenizer, after.strip()) if found else []
    if closing and closing[0] in tokenizer.added_tokens_decoder and closing[0] != tokenizer.eos_token_id:
        token = tokenizer.convert_ids_to_tokens(closing[0])
        raise UsageError(
            f"the chat template ends a reply with {token!r} and the tokenizer's EOS is {tokenizer.eos_token!r}, so "
            f"responses would end in two ways. Set eos_token to {token!r} in the model folder's tokenizer_config.json."
        )


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], *, open_reply: bool) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_reply))
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UsageError(
            f"the chat template refuses a conversation of {roles}: {error}. Change the row, or give another template "
            "with --chat_template_path."
        ) from error
