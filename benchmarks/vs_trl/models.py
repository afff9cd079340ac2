"""The saved models that both sides open: a language model, and a classifier with one output on the same base."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

VOCABULARY = 128


def make_classifier(model: Path, folder: Path) -> Path:
    """Save `model` with one output, its head random, and its tokenizer, where `folder` does not have them."""
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        classifier = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(model)
        tokenizer.save_pretrained(folder)
        classifier.config.pad_token_id = tokenizer.pad_token_id
        classifier.save_pretrained(folder)
    return folder


def make_tiny(folder: Path) -> Path:
    """Save a random language model of two layers in bfloat16, with a tokenizer of whole words."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    word_tokenizer(pad="<eos>").save_pretrained(folder)  # pad equals EOS, as in the real one
    return folder


def word_tokenizer(pad: str) -> PreTrainedTokenizerFast:
    """<unk>, <eos>, w2, w3 ..."""
    words = {word: i for i, word in enumerate(["<unk>", "<eos>", *(f"w{i}" for i in range(2, VOCABULARY))])}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<eos>", pad_token=pad)
