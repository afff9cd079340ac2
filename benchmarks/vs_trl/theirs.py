"""A job in TRL, in a process of its own: `python -m benchmarks.vs_trl.theirs job.json result.json`.

Its trainer runs as released. The phases are told apart from outside: `batch_generation` is the rollout, the update
begins with the first forward of policy and critic together and ends with the step, scoring is what lies between.
"""

from __future__ import annotations

import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer  # type: ignore[import-not-found]

from benchmarks.vs_trl.jobs import LORA_ALPHA, LORA_R, InTurn, Iteration, Job, count_tokens, report


class Phases(TrainerCallback):
    """Notes when the phases of each iteration begin and end."""

    def __init__(self, stop_id: int | None) -> None:
        self.stop_id = stop_id
        self.iterations: list[Iteration] = []
        self.generate, ppo_trainer.batch_generation = ppo_trainer.batch_generation, self.rollout
        self.update_began: float | None = None

    def rollout(self, model: torch.nn.Module, queries: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.cpu_began, self.began = time.process_time(), time.perf_counter()
        sequences, logits = self.generate(model, queries, *rest)
        self.rolled_out = time.perf_counter()
        self.tokens = count_tokens(sequences[:, queries.shape[1] :].tolist(), self.stop_id)
        return sequences, logits

    def before_forward(self, *_: Any) -> None:
        if self.update_began is None:
            self.update_began = time.perf_counter()

    def on_log(self, *_: Any, **given: Any) -> None:
        if "objective/kl" in (logs := given["logs"]):
            self.score, self.kl = logs["objective/scores"], logs["objective/kl"]

    def on_step_end(self, *_: Any, **__: Any) -> None:
        assert self.update_began is not None
        rollout, scoring = self.rolled_out - self.began, self.update_began - self.rolled_out
        update, cpu = time.perf_counter() - self.update_began, time.process_time() - self.cpu_began
        self.iterations.append(Iteration(rollout, scoring, update, cpu, self.tokens, self.score, self.kl))
        self.update_began = None


def main() -> None:
    job, result = Job.read(Path(sys.argv[1])), Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as scratch:
        trainer, phases = build(job, scratch)
        trainer.train()
    report(result, job, phases.iterations, {name: version(name) for name in ("trl", "torch", "transformers", "peft")})


def build(job: Job, scratch: str) -> tuple[PPOTrainer, Phases]:
    tokenizer = load_tokenizer(job.model)
    policy = AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, job.dtype))
    policy.generation_config.pad_token_id = tokenizer.pad_token_id  # what follows EOS must be masked
    phases = Phases(tokenizer.eos_token_id if job.stop else None)
    trainer = PPOTrainer(
        args=configure(job, scratch), processing_class=tokenizer, model=policy, ref_model=None,
        reward_model=load_classifier(job), value_model=CRITICS[job.critic](load_classifier(job)),
        train_dataset=InTurn(job.prompts, job.warmup + job.iterations + 2),  # the last batch steps out of turn
        eval_dataset=InTurn(job.prompts, 1), callbacks=[phases],
        peft_config=lora("CAUSAL_LM"),
    )  # fmt: skip
    trainer.model.register_forward_pre_hook(phases.before_forward)
    return trainer, phases


def configure(job: Job, scratch: str) -> PPOConfig:
    batch = len(job.prompts)
    micro_batch = job.micro_batch or batch
    return PPOConfig(
        output_dir=scratch, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no",
        num_sample_generations=0, total_episodes=batch * (job.warmup + job.iterations),
        per_device_train_batch_size=micro_batch, gradient_accumulation_steps=batch // micro_batch,
        local_rollout_forward_batch_size=batch, num_ppo_epochs=job.ppo_epochs, num_mini_batches=1,
        response_length=job.response_length, stop_token="eos" if job.stop else None,
        gradient_checkpointing=False, learning_rate=job.learning_rate, seed=job.seed,
    )  # fmt: skip


def lora(task: str) -> LoraConfig:
    return LoraConfig(task_type=task, target_modules="all-linear", r=LORA_R, lora_alpha=LORA_ALPHA)


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """With a pad token that is not EOS, since the trainer masks whatever equals it."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.pad_token = tokenizer.unk_token
    return tokenizer


def load_classifier(job: Job) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(job.classifier, dtype=getattr(torch, job.dtype))


def adapt(model: PreTrainedModel) -> PreTrainedModel:
    """LoRA on every linear layer of the body; the head is trained whole."""
    inject_adapter_in_model(lora("SEQ_CLS"), model)
    model.score.requires_grad_(True)
    return model


CRITICS = {"full": lambda model: model, "adapter": adapt}
"""What is trained of the value model."""

if __name__ == "__main__":
    main()
