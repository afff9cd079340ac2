"""Stop strings: a response ends where its text first contains one of them.

The text is that of the response's tokens alone, special tokens included as they are written. What ends the response is
a token: the one that completes the string stays, with whatever else it holds, and nothing after it is sampled.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rlhf_fast.runtime.errors import UsageError

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
