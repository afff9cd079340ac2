"""How a response is sampled and where it ends: temperature, top-k and top-p, stop tokens and stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.shown import notices


@dataclass(frozen=True)
class Sampling:
    """How to sample: temperature 0 is greedy; top_k 0 and top_p 1 are off (as PPO's mathematics needs).

    max_new_tokens: most tokens of a response, one number for all requests or one for each.
    """

    max_new_tokens: int | Sequence[int]
    stop_ids: tuple[int, ...]
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop_strings: StopStrings | None = None

    def __post_init__(self) -> None:
        limits = [self.max_new_tokens] if isinstance(self.max_new_tokens, int) else self.max_new_tokens
        for name, ok, expected in (
            ("max_new_tokens", all(n >= 1 for n in limits), "at least 1: a response needs room for a token"),
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
        ):
            if not ok:
                raise UsageError(f"{name}={getattr(self, name)!r} cannot be used: expected {expected}.")

    def limits(self, prompts: list[list[int]], context: int | None) -> list[int]:
        """`max_new_tokens` of each prompt's response.

        Raises `UsageError` if there is one each, but not for as many prompts, and for a prompt that is empty or that
        leaves no room for its response in the model's context.
        """
        given = self.max_new_tokens
        limits = [given] * len(prompts) if isinstance(given, int) else list(given)
        if len(limits) != len(prompts):
            raise UsageError(
                f"max_new_tokens has {len(limits)} numbers for {len(prompts)} prompts; give one a prompt, or one "
                "number for all."
            )
        for index, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
            _check_room(index, len(prompt), limit, context)
        return limits


def _check_room(index: int, length: int, limit: int, context: int | None) -> None:
    if length == 0:
        raise UsageError(f"prompt {index} is empty; a response needs at least one token to follow. Remove the row.")
    if context is not None and length + limit > context:
        raise UsageError(
            f"prompt {index} has {length} tokens and the response up to {limit}; the model's context is {context}. "
            "Shorten the prompt or lower response_length."
        )


def stop_ids(
    tokenizer: PreTrainedTokenizerBase,
    stop_token: Literal["eos", "none"] = "eos",
    stop_token_id: int | None = None,
    *,
    model_eos: tuple[int, ...] = (),
) -> tuple[int, ...]:
    """Ids that end a response: the given one, or the tokenizer's EOS, or none.

    model_eos: what the model's generation config ends a text with. Where the tokenizer's EOS is among several, as in
    many chat models, any of them ends a response; a list without it belongs to another tokenizer and is left aside.
    """
    if stop_token_id is not None:
        if not 0 <= stop_token_id < len(tokenizer):
            raise UsageError(f"stop_token_id={stop_token_id} is no token; expected 0 to {len(tokenizer) - 1}.")
        return (stop_token_id,)
    if stop_token == "none":
        return ()
    if tokenizer.eos_token_id is None:
        raise UsageError("the tokenizer has no EOS token; set stop_token_id, or stop_token=none to run to the budget.")
    if tokenizer.eos_token_id in model_eos:
        return model_eos
    if model_eos:
        notices.info(
            "the model's config ends a text with the token %s and its tokenizer with %d (%s): responses end with the "
            "tokenizer's, here and in a model that is saved or exported",
            " or ".join(map(str, model_eos)), tokenizer.eos_token_id, tokenizer.eos_token,
        )  # fmt: skip
    return (tokenizer.eos_token_id,)


def end_with(model: PreTrainedModel, ids: tuple[int, ...]) -> None:
    """Write what ends a response into the config and the generation config of `model`, in place, so that whoever
    generates with what is saved stops where a rollout does. No ids (a response ends by its length) change nothing."""
    if not ids:
        return
    eos = ids[0] if len(ids) == 1 else list(ids)
    for config in (model.config, model.config.get_text_config(), model.generation_config):
        if config is not None:
            config.eos_token_id = eos


REPLACED = "\N{REPLACEMENT CHARACTER}"  # what part of a character's bytes decodes to
MOST_BYTES = 4  # of a character in UTF-8


class StopStrings:
    """Strings that end a response. Raises `UsageError` for an empty one, which every text contains."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> None:
        if not strings or not all(strings):
            raise UsageError(f"stop={list(strings)!r} cannot be used: expected strings of one character or more.")
        self.tokenizer, self.strings = tokenizer, tuple(strings)
        self.reach = 1 + max(len(string.encode()) for string in strings)  # in tokens, which hold a byte or more

    def completed_by_last(self, tokens: list[int]) -> bool:
        """Whether a string ends in the last of the response's tokens, given that none did before.

        Only a tail is decoded: as many tokens as the longest string has bytes, and one more, because some tokenizers
        drop the space in front of a text. Where it may start within a character, it is made longer by up to three.
        """
        for more in range(MOST_BYTES):
            tail = tokens[-(self.reach + more) :]
            text = self.tokenizer.decode(tail, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if any(string in text for string in self.strings):
                return True
            if REPLACED not in text:
                return False
        return False


def stop_strings(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> StopStrings | None:
    """What an option `stop` asks for: None where it names no string."""
    return StopStrings(tokenizer, stop) if stop else None
