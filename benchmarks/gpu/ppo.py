"""A PPO run over a random model without files, and a listener that measures its phases."""

from __future__ import annotations

import time

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from benchmarks.gpu.bench import Bench
from rlhf_fast.model.batches import MicroBatches
from rlhf_fast.model.roles import Policy, adapter_critic
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.rewards.classifier import AdapterReward
from rlhf_fast.rewards.source import WeightedRewards
from rlhf_fast.train.config import PPORunConfig
from rlhf_fast.train.ppo import PPO
from rlhf_fast.train.prompts import Prompts


def build_ppo(shared: SharedModel, folder: str, *, rows: int, prompt: int, new: int) -> PPO:
    """Policy, reference, critic and reward model on one base; `rows` prompts of `prompt` tokens, `new` sampled to each,
    one PPO epoch in one minibatch."""
    config = PPORunConfig(
        output_dir=folder, per_device_train_batch_size=rows, response_length=new, total_episodes=4 * rows,
        num_ppo_epochs=1, num_mini_batches=1, use_cpu=shared.device.type == "cpu", max_rollout_batch=rows,
        max_tokens_per_micro_batch=4096, temperature=1.0, max_length=prompt + new,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    vocabulary = shared.base.config.vocab_size
    ids = torch.randint(3, vocabulary, (rows, prompt), generator=generator).tolist()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0")),
        eos_token="w2", pad_token="w2",
    )  # fmt: skip
    reward = AdapterReward("reward", adapter_critic(shared, "reward"), MicroBatches.of(config))
    return PPO(
        config, Policy(shared, "policy"), Policy(shared, None), adapter_critic(shared, "critic"),
        WeightedRewards([(reward, 1.0)]), tokenizer, Prompts(ids, ["text"] * rows), starts_as_reference=False,
    )  # fmt: skip


class Phases:
    """Seconds and peak memory of each phase of an iteration."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.found: dict[str, tuple[float, float]] = {}

    def started(self, phase: str) -> None:
        self.bench.wait()
        self.bench.reset_peak()
        self.begin = time.perf_counter()

    def ended(self, phase: str) -> None:
        self.bench.wait()
        self.found[phase] = time.perf_counter() - self.begin, self.bench.peak()

    def works(self, flops: float, read: float) -> None:
        pass

    def numbers(self) -> dict[str, float]:
        return {f"{phase}_{unit}": value for phase, pair in self.found.items()
                for unit, value in zip(("seconds", "gib"), pair, strict=True)}  # fmt: skip
