"""A job through `rlhf_fast.PPOTrainer`, given the same objects as TRL's: `python -m benchmarks.vs_trl.trainer job.json
result.json`. Its critic is the whole classifier, which is the reward too."""

from __future__ import annotations

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from benchmarks.vs_trl.jobs import LORA_ALPHA, LORA_R, Job, report
from benchmarks.vs_trl.ours import timed_step
from rlhf_fast.trainer import PPOConfig, PPOTrainer


def main() -> None:
    job, result = Job.read(Path(sys.argv[1])), Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as scratch:
        ppo = build(job, scratch).ppo
        iterations = [timed_step(ppo) for _ in range(job.warmup + job.iterations)]
    report(result, job, iterations, {name: version(name) for name in ("torch", "transformers", "peft")})


def build(job: Job, scratch: str) -> PPOTrainer:
    batch = len(job.prompts)
    config = PPOConfig(
        output_dir=scratch, use_cpu=True, report_to="none", save_strategy="no", num_sample_generations=0,
        total_episodes=batch * (job.warmup + job.iterations), per_device_train_batch_size=batch,
        gradient_accumulation_steps=1, num_ppo_epochs=job.ppo_epochs, num_mini_batches=1,
        response_length=job.response_length, stop_token="eos" if job.stop else None,
        learning_rate=job.learning_rate, seed=job.seed,
    )  # fmt: skip
    return PPOTrainer(
        args=config, processing_class=AutoTokenizer.from_pretrained(job.model, padding_side="left"),
        model=AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, job.dtype)), ref_model=None,
        reward_model=classifier(job), value_model=classifier(job),
        train_dataset=[{"input_ids": ids} for ids in job.prompts],
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", target_modules="all-linear", r=LORA_R, lora_alpha=LORA_ALPHA
        ),
    )  # fmt: skip


def classifier(job: Job) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(job.classifier, dtype=getattr(torch, job.dtype))


if __name__ == "__main__":
    main()
