"""Small runs of every stage that read every random generator, and what they leave, timings aside."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy
import torch
from peft import LoraConfig

from rlhf_fast import FunctionReward, PPORunConfig, RewardConfig, SFTConfig, run_ppo, run_reward, run_sft
from rlhf_fast.model.adapter_files import save_adapter
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.runtime.tracking import METRICS_FILE
from rlhf_fast.train.rollout_log import ROLLOUTS_FILE
from tests.model_cases import tiny_model
from tests.preferences.cases import rows, write_model, write_rows, write_sft_adapter
from tests.tiny_tokenizer import tiny_tokenizer

STAGES = ("sft", "reward", "ppo")
STEPS = 6
TIMINGS = ("seconds",)
"""Metrics that say how long something took: they differ from run to run, and are compared by nobody."""


def prepare(folder: Path) -> Path:
    """A base model, an SFT adapter, a reward adapter, demonstrations and comparisons."""
    base = write_model(folder / "base", tiny_tokenizer())
    write_sft_adapter(folder / "sft_adapter", base)
    shared = SharedModel(tiny_model())
    shared.add_adapter("reward", LoraConfig(r=4, target_modules="all-linear"), head=True)
    shared.heads["reward"].weight.data.normal_()
    save_adapter(shared, "reward", folder / "reward_adapter", base=base)
    demonstrations = [{"prompt": f"w{i} w{i + 1}", "completion": f"w7 w8 w{i + 9}"} for i in range(16)]
    write_rows(folder / "demonstrations.jsonl", demonstrations)
    write_rows(folder / "comparisons.jsonl", rows(16))
    return folder


def config(stage: str, folder: Path, output: Path, **options: Any) -> Any:
    """Of a run of `STEPS` steps with a schedule, 3 of them a pass, and a checkpoint every 2 steps."""
    common = {
        "use_cpu": True, "disable_tqdm": True, "dtype": "float32", "lora_r": 4, "lora_alpha": 8.0, "save_steps": 2,
        "learning_rate": 1e-2, "lr_scheduler_type": "cosine", "warmup_steps": 1, "output_dir": str(output),
        "per_device_train_batch_size": 6,
    }  # fmt: skip
    passes = {"num_train_epochs": STEPS / 3}  # of 6, 6 and 4 of the 16 rows
    if stage == "sft":
        own = {"model_name_or_path": f"{folder}/base", "dataset_name": f"{folder}/demonstrations.jsonl"} | passes
        own["eval_dataset_name"] = own["dataset_name"]
        return SFTConfig(**(common | own | options))
    if stage == "reward":
        own = {"model_name_or_path": f"{folder}/sft_adapter", "dataset_name": f"{folder}/comparisons.jsonl"} | passes
        own |= {"normalise_samples": 4, "response_length": 4, "eval_dataset_name": own["dataset_name"]}
        return RewardConfig(**(common | own | options))
    own = {
        "sft_model_path": f"{folder}/sft_adapter", "reward_model_path": f"{folder}/reward_adapter",
        "dataset_name": f"{folder}/demonstrations.jsonl", "total_episodes": STEPS * 6, "response_length": 5,
        "num_ppo_epochs": 2, "num_mini_batches": 2, "kl_target": 1.0, "kl_horizon": 20, "temperature": 1.0,
    }  # fmt: skip
    return PPORunConfig(**(common | own | options))


def run(stage: str, folder: Path, output: Path, **options: Any) -> None:
    numpy.random.seed(0)
    settings = config(stage, folder, output, **options)
    if stage == "sft":
        run_sft(settings)
    elif stage == "reward":
        run_reward(settings)
    else:
        run_ppo(settings, [(FunctionReward("noisy", noisy), 1.0)])


def noisy(prompts, responses, **columns):
    """A reward that draws from the generators of Python, NumPy and torch."""
    return [random.random() + numpy.random.standard_normal() + float(torch.rand(())) for _ in responses]


def outcome(output: Path) -> dict[str, Any]:
    """The metrics but the timings, and a digest of every file of weights or rollouts beside the checkpoints."""
    lines = (output / METRICS_FILE).read_text().splitlines()
    metrics = [{k: v for k, v in json.loads(line).items() if k not in TIMINGS} for line in lines]
    weights = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in output.iterdir()
               if path.suffix == ".safetensors" or path.name == ROLLOUTS_FILE}  # fmt: skip
    return {"metrics": metrics} | weights
