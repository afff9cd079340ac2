"""What the roles of PPO cost by plan: models apart or shared, each critic, a reward model outside, LoRA or all weights.

    python -m benchmarks.plan_roles [--prompt 512] [--response 512] [--only 7B ...]

No weight is read. Prints the tables of docs/memory.md, for a card: GiB at the peak, and the least seconds of an
iteration of 8 responses on an A100.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from rlhf_fast.profiling.memory_table import GIB
from rlhf_fast.train.config import PPORunConfig
from rlhf_fast.train.plan import card, least_seconds, predict, read_workload
from rlhf_fast.train.plan_model import read_facts
from rlhf_fast.train.plan_solve import with_values

SHAPES = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
           "vocab_size": 32000},
    "13B": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
            "vocab_size": 32000},
}  # fmt: skip
STORED_LOGITS = 3
"""Tensors of a float32 for each response token and word, where logits are stored: with log-softmax and gradient."""
MACHINE = replace(card("80GB"), bytes=1e12)  # whatever it takes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--response", type=int, default=512)
    parser.add_argument("--only", nargs="*", choices=SHAPES, default=list(SHAPES))
    given = parser.parse_args()
    for name in given.only:
        with tempfile.TemporaryDirectory() as folder:
            config = write_model(name, Path(folder), given.response)
            print_sharing(name, config, given.prompt)
            print_roles(name, config, given.prompt)


def write_model(name: str, folder: Path, response: int) -> PPORunConfig:
    """Its config, and that of a reward classifier of the same shape, with no weights."""
    LlamaConfig(**SHAPES[name], max_position_embeddings=4096, dtype="bfloat16").save_pretrained(folder / "model")
    classifier = LlamaConfig(**SHAPES[name], max_position_embeddings=4096, dtype="bfloat16")
    classifier.num_labels = 1
    classifier.save_pretrained(folder / "reward")
    return PPORunConfig(
        sft_model_path=str(folder / "model"), response_length=response, activation_checkpointing=True,
        max_rollout_batch=8, num_ppo_epochs=1,
    )  # fmt: skip


def print_sharing(name: str, config: PPORunConfig, prompt: int) -> None:
    """Bases: of policy, reference, critic and reward model."""
    table, facts = peak_and_seconds(config, prompt)[0], read_facts(config, "cuda")
    logits = STORED_LOGITS * 4 * config.response_length * facts.vocabulary / GIB
    print(f"\n| {name}, LoRA | bases | GiB | logits stored, GiB |\n| --- | ---: | ---: | ---: |")
    for words, bases in (("four models", 4), ("policy and reference share", 3), ("all share", 1)):
        size = table + (bases - 1) * facts.weights.base / GIB
        print(f"| {words} | {bases} | {size:.1f} | {size + logits:.1f} |")


def print_roles(name: str, config: PPORunConfig, prompt: int) -> None:
    print(f"\n| {name} | GiB | seconds at least |\n| --- | ---: | ---: |")
    for words, values in choices(config):
        size, seconds = peak_and_seconds(with_values(config, **values), prompt)
        print(f"| {words} | {size:.1f} | {seconds:.1f} |")


def choices(config: PPORunConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    outside = str(Path(str(config.sft_model_path)).parent / "reward")
    yield "LoRA, critic=adapter, reward: a function", {}
    yield "critic=policy_head", {"critic": "policy_head"}
    yield "critic=reference_mlp", {"critic": "reference_mlp"}
    yield "a reward model of its own", {"reward_model_path": outside}
    yield "activations kept", {"activation_checkpointing": False}
    yield "all weights", {"use_peft": False}


def peak_and_seconds(config: PPORunConfig, prompt: int) -> tuple[float, float]:
    workload = read_workload(config, None, prompt)
    peak = predict(config, MACHINE, workload).peak.expected
    return peak / GIB, sum(least_seconds(config, MACHINE, workload).values())


if __name__ == "__main__":
    main()
