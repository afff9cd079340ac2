"""Tiny sequence classifiers with one output, each with a tokenizer of its own."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

OWN_TEMPLATE = "{% for m in messages %}{{ 'w50' if m['role'] == 'user' else 'w51' }} {{ m['content'] }} {% endfor %}"


def encoder_tokenizer(limit: int = 32) -> PreTrainedTokenizerFast:
    """Other ids than the policy's; a text stands between [CLS] and [SEP]."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in reversed(range(90)))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=limit, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def encoder(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32, num_labels=1, initializer_range=0.4,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def decoder(family: str = "llama") -> PreTrainedModel:
    """Its config says that the pad id is the EOS id: transformers' own forward would read before the first EOS."""
    torch.manual_seed(0)
    common = {"vocab_size": 97, "num_labels": 1, "pad_token_id": 2, "eos_token_id": 2, "initializer_range": 0.4}
    if family == "gpt2":
        return GPT2ForSequenceClassification(
            GPT2Config(n_positions=64, n_embd=32, n_layer=2, n_head=4, **common)
        ).eval()
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
        **common,
    )  # fmt: skip
    return LlamaForSequenceClassification(config).eval()
