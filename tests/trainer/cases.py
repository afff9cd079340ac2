"""Tiny models, data and configs as a TRL script would hand them over."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rlhf_fast.trainer import PPOConfig, PPOTrainer
from tests.model_cases import CONFIGS, tiny_model, tokens
from tests.tiny_tokenizer import tiny_tokenizer

LENGTHS = (3, 5, 4, 7, 2, 6, 3, 4)


def policy(architecture: str = "llama") -> PreTrainedModel:
    """A language model with preferences: some responses end with EOS before the budget."""
    model = tiny_model(architecture)
    model.lm_head.weight.data.mul_(6)
    model.lm_head.weight.data[2].mul_(2)
    return model


def classifier(architecture: str = "llama", seed: int = 3) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = copy.deepcopy(CONFIGS[architecture])
    config.num_labels, config.pad_token_id = 1, 0
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    model.score.weight.data.normal_()
    return model


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**({"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options))


def rows(*lengths: int) -> list[dict[str, list[int]]]:
    return [{"input_ids": ids} for ids in tokens(*(lengths or LENGTHS))]


def config(tmp_path, **options: Any) -> PPOConfig:
    defaults = {
        "output_dir": str(tmp_path), "per_device_train_batch_size": 8, "learning_rate": 1e-3, "response_length": 6,
        "total_episodes": 8 * 3, "temperature": 1.0, "use_cpu": True, "disable_tqdm": True, "report_to": "none",
        "num_sample_generations": 0, "num_ppo_epochs": 2,
    }  # fmt: skip
    return PPOConfig(**(defaults | options))


def likes_even(prompts, responses, **columns):
    """The share of words with an even number."""
    return [sum(w[-1] in "02468" for w in r.split()) / max(1, len(r.split())) for r in responses]


def trainer(tmp_path, *, options: dict[str, Any] | None = None, **given: Any) -> PPOTrainer:
    """With LoRA and a function as reward, unless `given` says otherwise."""
    defaults = {
        "processing_class": tiny_tokenizer(), "model": None, "ref_model": None, "reward_model": likes_even,
        "train_dataset": rows(), "peft_config": lora(),
    }  # fmt: skip
    given = defaults | given
    given["model"] = policy() if given["model"] is None else given["model"]
    return PPOTrainer(config(tmp_path, **(options or {})), **given)
