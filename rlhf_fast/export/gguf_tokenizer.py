"""A byte-level BPE tokenizer in the words of a GGUF file.

llama.cpp has the splits of text before BPE built in, each under a name, and reads no others from a file. So a tokenizer
is written only where its own splits are those of a name, and refused otherwise. One difference remains: Qwen's
tokenizers bring text into Unicode's NFC first, and llama.cpp does not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.shown import notices

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""`tokenizer.ggml.token_type`: special tokens are CONTROL, other added ones USER_DEFINED."""

_ENDS = ("eos", "eot", "eom")

_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_BYTES = "bytes"
_NAMES = {
    (("gpt-2", _BYTES), False): "gpt-2",
    (("digits", "gpt-2", _BYTES), False): "smollm",
    ((rf"{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}", _BYTES), False): "qwen2",
    ((rf"{_WORD}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}", _BYTES), True): "llama-bpe",
    ((rf"{_CASED}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}", _BYTES), True): "tekken",
}
"""(successive splits, whether a whole word of the vocabulary passes by the merges): the name in llama.cpp."""


def tokenizer_metadata(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> dict[str, Any]:
    """Keys and values of `tokenizer.*`, with a token for each of the `vocab_size` rows of the embedding.

    Rows beyond the tokenizer's vocabulary get tokens of the type UNUSED. Raises `UsageError` where llama.cpp would read
    text differently from `tokenizer`.
    """
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens, types = _tokens(spec, vocab_size)
    metadata: dict[str, Any] = {
        "ggml.model": "gpt2", "ggml.pre": _pre(spec), "ggml.tokens": tokens, "ggml.token_type": types,
        "ggml.merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]],
        "ggml.add_space_prefix": False, **_ends(tokenizer),
    }  # fmt: skip
    template = tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    if template is not None:
        metadata["chat_template"] = template
    return {f"tokenizer.{key}": value for key, value in metadata.items()}


def ends_metadata(ids: tuple[int, ...], eos: int | None) -> dict[str, int]:
    """Keys and values of the tokens that end a response: GGUF has a place for EOS, and two for others (end of a turn,
    end of a message), at which llama.cpp stops, too. Of more it knows some by their text; a line names the rest."""
    ordered = sorted(ids, key=lambda token: token != eos)
    if len(ordered) > len(_ENDS):
        notices.warning("GGUF has no place for the ends %s: llama.cpp may go on after them", ordered[len(_ENDS) :])
    return {f"tokenizer.ggml.{name}_token_id": token for name, token in zip(_ENDS, ordered, strict=False)}


def _pre(spec: dict[str, Any]) -> str:
    model = spec["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise _refused(f"its kind is {model['type']}{', as of SentencePiece' if model.get('byte_fallback') else ''}")
    normaliser = (spec["normalizer"] or {"type": "NFC"})["type"]
    if normaliser != "NFC":
        raise _refused(f"its normaliser {normaliser} is none of llama.cpp's")
    splits = tuple(_splits(spec["pre_tokenizer"] or {"type": "no split"}))
    name = _NAMES.get((splits, bool(model.get("ignore_merges"))))
    if name is None:
        raise _refused(f"llama.cpp has no name for its splits {splits} with ignore_merges={model.get('ignore_merges')}")
    return name


def _splits(node: dict[str, Any]) -> Iterator[str]:
    """What a pre-tokenizer does in turn; a part that no name could have is told as JSON."""
    match node:
        case {"type": "Sequence", "pretokenizers": parts}:
            for part in parts:
                yield from _splits(part)
        case {"type": "Digits", "individual_digits": True}:
            yield "digits"
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            yield pattern
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": own}:
            yield from ("gpt-2", _BYTES) if own else (_BYTES,)
        case _:
            yield json.dumps(node)


def _tokens(spec: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Text and type of each id."""
    added = {token["id"]: token for token in spec["added_tokens"]}
    texts = {id: token for token, id in spec["model"]["vocab"].items()}
    texts |= {id: token["content"] for id, token in added.items()}
    if max(texts) >= vocab_size:
        raise _refused(f"it has the id {max(texts)}, and the model's vocabulary {vocab_size} tokens")
    for token in added.values():
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise _refused(f"its token {token['content']!r} takes spaces with it or stands only between words")
    types = [
        (CONTROL if added[id]["special"] else USER_DEFINED) if id in added else NORMAL if id in texts else UNUSED
        for id in range(vocab_size)
    ]
    return [texts.get(id, f"[PAD{id}]") for id in range(vocab_size)], types


def _ends(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Ids of the special tokens that have a role, and whether text gets the first and the last of them."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if eos is None:
        raise _refused("it has no EOS token, and llama.cpp would take another for it")
    plain, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    first, last = whole[:1] == [bos], whole[-1:] == [eos]
    if whole != [bos] * first + plain + [eos] * last:
        raise _refused(f"it puts {whole} for {plain}: more than BOS before and EOS after it")
    ids = {"bos": bos, "eos": eos, "unknown": tokenizer.unk_token_id, "padding": tokenizer.pad_token_id}
    known = {f"ggml.{name}_token_id": id for name, id in ids.items() if id is not None}
    return known | {"ggml.add_bos_token": first, "ggml.add_eos_token": last}


def _refused(why: str) -> UsageError:
    names = ", ".join(_NAMES.values())
    return UsageError(
        f"the tokenizer cannot be written as GGUF: {why}. Expected byte-level BPE with the splits that llama.cpp calls "
        f"{names}. Export with gguf='none'."
    )
