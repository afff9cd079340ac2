"""A byte-level tokenizer, built in code: a token a byte, and some that hold several."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def byte_tokenizer(*merged: str) -> PreTrainedTokenizerFast:
    """Ids 0..255 in the order of the byte-level alphabet; then `merged`, ASCII without spaces; then `<eos>`."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate([*pieces, *merged])}, unk_token=pieces[0]))
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    tokenizer.add_special_tokens({"eos_token": AddedToken("<eos>", special=True)})
    return tokenizer


def byte_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """`text` as one token for each of its bytes."""
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return tokenizer.convert_tokens_to_ids([character for piece, _ in pieces for character in piece])
