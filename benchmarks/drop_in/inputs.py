"""Tiny random models, a tokenizer and rows, under the names by which the scripts ask for them.

`make` writes a folder in which a script runs: names of models and data sets, TRL's own on the hub included, are folders
beside it, which transformers and datasets prefer to the hub.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)

EOS, PAD = "<|im_end|>", "<|endoftext|>"
TEXTS = (
    "the parcel is late by a week", "a refund would be kind", "where is the order from monday", "the lamp came broken",
    "nobody answers the phone today", "please change the address", "it works well enough now", "the bill is too high",
)  # fmt: skip
SHAPE: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 1024, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
}  # fmt: skip


def make(folder: Path) -> None:
    """Write everything into `folder`."""
    tokenizer = tokenizer_of(TEXTS)
    torch.manual_seed(0)
    size = len(tokenizer)
    common: dict[str, Any] = {"vocab_size": size, "num_labels": 1, "initializer_range": 0.2}
    qwen = Qwen2Config(num_key_value_heads=2, **common, **SHAPE)
    neox = GPTNeoXConfig(**common, **SHAPE)
    gpt2 = GPT2Config(
        n_embd=16, n_layer=2, n_head=4, n_positions=1024, pad_token_id=0, eos_token_id=1, bos_token_id=None, **common
    )
    policy, reward = Qwen2ForCausalLM(qwen), Qwen2ForSequenceClassification(qwen)
    models = {
        "policy": policy, "reward": reward,
        "policy-neox": GPTNeoXForCausalLM(neox), "reward-neox": GPTNeoXForSequenceClassification(neox),
        "policy-gpt2": GPT2LMHeadModel(gpt2), "reward-gpt2": GPT2ForSequenceClassification(gpt2),
    }  # fmt: skip
    for name, model in models.items():
        _save(model, tokenizer, folder / name)
    for name, model in {"ForCausalLM-2.5": policy, "ForSequenceClassification-2.5": reward}.items():
        _save(model.bfloat16(), tokenizer, folder / "trl-internal-testing" / f"tiny-Qwen2{name}")
    adapted = get_peft_model(policy.float(), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.save_pretrained(folder / "adapter")
    _write_rows(folder)


def tokenizer_of(texts: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Of byte pairs, with ids 0 for padding and 1 for EOS."""
    core = Tokenizer(BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=320, show_progress=False, special_tokens=[PAD, EOS], initial_alphabet=alphabet
    ))  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=EOS, pad_token=PAD, padding_side="left")


def prompts(count: int) -> list[dict[str, str]]:
    draw = random.Random(0)
    words = " ".join(TEXTS).split()
    return [{"prompt": " ".join(draw.choices(words, k=draw.randint(3, 7)))} for _ in range(count)]


def _save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_rows(folder: Path) -> None:
    """Data sets of the names and splits that the scripts load, each with its own number of rows."""
    sets: dict[str, dict[str, int]] = {
        "rows": {"train": 16, "test": 4},
        "trl-lib/tldr": {"train": 16, "validation": 4},
        "trl-internal-testing/descriptiveness-sentiment-trl-style": {"descriptiveness": 116},
        "trl-internal-testing/zen": {"train": 17, "test": 2},
    }
    for name, splits in sets.items():
        where = folder / name
        where.mkdir(parents=True)
        files = [f"  - split: {split}\n    path: {split}.jsonl\n" for split in splits]
        config = "standard_prompt_only" if name.endswith("zen") else "default"
        (where / "README.md").write_text(
            f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{''.join(files)}---\n"
        )
        for split, count in splits.items():
            (where / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts(count)))
