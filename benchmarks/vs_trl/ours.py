"""A job in rlhf_fast, in a process of its own: `python -m benchmarks.vs_trl.ours job.json result.json`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmarks.vs_trl.jobs import LORA_ALPHA, LORA_R, Iteration, Job, report
from rlhf_fast.data.prompts import Prompts
from rlhf_fast.rewards.classifier import ClassifierReward
from rlhf_fast.rewards.source import WeightedRewards
from rlhf_fast.train.config import PPORunConfig
from rlhf_fast.train.ppo import PPO
from rlhf_fast.train.roles import build_roles

CRITICS: dict[str, dict[str, Any]] = {name: {"critic": name} for name in ("adapter", "policy_head", "reference_mlp")}
"""What a critic's row sets in the config."""


def main() -> None:
    job, result = Job.read(Path(sys.argv[1])), Path(sys.argv[2])
    ppo = build(job)
    iterations = [timed_step(ppo) for _ in range(job.warmup + job.iterations)]
    report(result, job, iterations, {name: version(name) for name in ("torch", "transformers", "peft")})


def build(job: Job) -> PPO:
    config = PPORunConfig(
        sft_model_path=job.model, use_cpu=True, dtype=job.dtype, lora_r=LORA_R, lora_alpha=LORA_ALPHA,
        per_device_train_batch_size=len(job.prompts), gradient_accumulation_steps=1, num_ppo_epochs=job.ppo_epochs,
        num_mini_batches=1, total_episodes=len(job.prompts) * (job.warmup + job.iterations),
        response_length=job.response_length, stop_token="eos" if job.stop else "none",
        learning_rate=job.learning_rate, seed=job.seed, **CRITICS[job.critic],
    )  # fmt: skip
    roles = build_roles(config)
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    reward = ClassifierReward.load(
        "classifier", job.classifier, dtype=getattr(torch, job.dtype), device=torch.device("cpu")
    )
    prompts = Prompts(job.prompts, tokenizer.batch_decode(job.prompts))
    rewards = WeightedRewards([(reward, 1.0)])
    return PPO(config, roles.policy, roles.reference, roles.critic, rewards, tokenizer, prompts)


def timed_step(ppo: PPO) -> Iteration:
    """One iteration. What is neither rollout nor update counts as scoring, the metrics included."""
    collect, update, whole = Timed(ppo.collect), Timed(ppo.update), Timed(ppo.step)
    vars(ppo).update(collect=collect, update=update)
    cpu_began = time.process_time()
    metrics = whole()
    cpu = time.process_time() - cpu_began
    del vars(ppo)["collect"], vars(ppo)["update"]  # the class's own again
    tokens = sum(map(len, collect.result.responses()))
    scoring = whole.seconds - collect.seconds - update.seconds
    score, kl = metrics["objective/scores"], metrics["objective/kl"]
    return Iteration(collect.seconds, scoring, update.seconds, cpu, tokens, score, kl)


class Timed:
    """A function whose latest call left its seconds and result."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        start = time.perf_counter()
        self.result = self.function(*args)
        self.seconds = time.perf_counter() - start
        return self.result


if __name__ == "__main__":
    main()
