"""Comparisons that a tiny model can learn: the response with the good word is better."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from peft import LoraConfig
from transformers import PreTrainedTokenizerBase

from rlhf_fast.model.adapter_files import save_adapter
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.preferences.config import RewardConfig
from tests.model_cases import tiny_model

GOOD, BAD, MIDDLING = "w7", "w8", "w9"


def rows(prompts: int, seed: int = 0) -> list[dict[str, Any]]:
    """Three responses of 3 to 5 words to each prompt, in any order; the word that decides stands anywhere in them."""
    rng = random.Random(seed)

    def response(word: str) -> str:
        words = [f"w{rng.randrange(20, 90)}" for _ in range(rng.randint(2, 4))]
        words.insert(rng.randint(0, len(words)), word)
        return " ".join(words)

    ranks = {GOOD: 1, MIDDLING: 2, BAD: 3}
    out = []
    for i in range(prompts):
        order = rng.sample(sorted(ranks), 3)
        prompt = f"w{20 + i} w{rng.randrange(20, 90)}"
        responses = [response(word) for word in order]
        out.append({"prompt": prompt, "responses": responses, "ranks": [ranks[word] for word in order]})
    return out


def write_rows(path: Path, data: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in data))
    return str(path)


def write_model(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """A base model folder; its pad token is its EOS."""
    tiny_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_sft_adapter(folder: Path, base: str) -> str:
    shared = SharedModel(tiny_model())
    shared.add_adapter("sft", LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    for parameter in shared.parameters("sft"):
        parameter.data.normal_(0, 0.05)
    save_adapter(shared, "sft", folder, base=base)
    return str(folder)


def config(**options: Any) -> RewardConfig:
    defaults = {
        "use_cpu": True, "disable_tqdm": True, "learning_rate": 1e-2, "per_device_train_batch_size": 8, "lora_r": 4,
        "lora_alpha": 8, "num_train_epochs": 6, "dtype": "float32", "lr_scheduler_type": "constant",
        "response_length": 6, "temperature": 1.0, "normalise_samples": 16,
    }  # fmt: skip
    return RewardConfig(**(defaults | options))
