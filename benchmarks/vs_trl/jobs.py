"""The PPO jobs that both libraries run: prompts as token ids, lengths, and what a run of one reports."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PHASES = ("rollout", "scoring", "update")
OASST = Path("shared/data/oasst_en_100_tree.jsonl")  # beside the checkout
LORA_R, LORA_ALPHA = 16, 32
RAGGED = (
    32, 37, 40, 42, 44, 48, 50, 53, 58, 62, 68, 75, 87, 91, 94, 97,
    100, 108, 113, 118, 127, 138, 142, 149, 153, 156, 159, 170, 174, 181, 185, 192,
)  # fmt: skip
"""Prompt lengths: quantiles of those of Open-Assistant's conversations that have 32 to 192 tokens in SmolLM2's."""


@dataclass(frozen=True)
class Workload:
    """An iteration's shape: one response to each prompt, then `ppo_epochs` passes with one optimiser step each."""

    prompt_lengths: tuple[int, ...]
    response_length: int
    stop: bool  # at EOS; else every response fills its budget
    ppo_epochs: int = 4
    warmup: int = 1  # iterations before those that count


WORKLOADS = {
    "uniform": Workload((64,) * 16, 64, stop=False),
    "ragged": Workload(RAGGED, 256, stop=True, warmup=0),
    "smoke": Workload((6, 8) * 8, 8, stop=True),
}


@dataclass(frozen=True)
class Job:
    """What the process of one side runs. `prompts` are all prompts of an iteration, the same in each."""

    model: str  # folder of the language model: policy and reference
    classifier: str  # folder of the same base with one output: the reward, and where TRL's critic starts
    prompts: list[list[int]]
    response_length: int
    stop: bool
    ppo_epochs: int
    warmup: int
    iterations: int
    critic: str
    micro_batch: int | None  # sequences in a forward and backward; None: the side's default
    dtype: str = "bfloat16"
    learning_rate: float = 3e-6
    seed: int = 0

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Job:
        return cls(**json.loads(path.read_text()))


@dataclass(frozen=True)
class Iteration:
    """Seconds of the phases, which add up to the iteration's; of them all on every core; response tokens sampled; the
    mean score of the responses and their mean KL to the reference in nats."""

    rollout: float
    scoring: float
    update: float
    cpu: float
    tokens: int
    score: float
    kl: float

    @property
    def seconds(self) -> float:
        return self.rollout + self.scoring + self.update


def report(path: Path, job: Job, iterations: list[Iteration], versions: dict[str, str]) -> None:
    """What a side's process leaves: the iterations that count, and the most memory it ever held."""
    kept = [asdict(iteration) for iteration in iterations[job.warmup :]]
    path.write_text(json.dumps({"iterations": kept, "peak_bytes": peak_bytes(), "versions": versions}))


def peak_bytes() -> int:
    """Peak of this process's resident set, from its start."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def count_tokens(responses: list[list[int]], stop_id: int | None) -> int:
    """Tokens of padded responses: of each up to and with its first `stop_id`, or all of it."""
    return sum(ids.index(stop_id) + 1 if stop_id in ids else len(ids) for ids in responses)


class InTurn:
    """A dataset of `batches` batches that gives the prompts in turn, whatever index is asked for.

    So each batch has all prompts, in their order, though a trainer's loader shuffles.
    """

    def __init__(self, prompts: list[list[int]], batches: int) -> None:
        self.prompts, self.length, self.given = prompts, batches * len(prompts), 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        self.given += 1
        return {"input_ids": self.prompts[(self.given - 1) % len(self.prompts)]}


def choose_prompts(lengths: tuple[int, ...], tokenizer: Any, data: Path, seed: int = 0) -> list[list[int]]:
    """Prompts of these lengths: the ends of real conversations where `data` exists, else random token ids."""
    if not data.is_file():
        draw = random.Random(seed)
        usual = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
        return [draw.choices(usual, k=n) for n in lengths]
    from rlhf_fast.data.encode import encode_prompt
    from rlhf_fast.data.readers import read_prompts

    rows = read_prompts(str(data), format="oasst").rows
    return nearest([encode_prompt(tokenizer, row.prompt) for row in rows], lengths)


def nearest(texts: list[list[int]], lengths: tuple[int, ...]) -> list[list[int]]:
    """For each length the shortest text left that has so many tokens: its end, where the turn to answer is."""
    left = sorted(texts, key=len)
    chosen = []
    for n in lengths:
        index = next(i for i, ids in enumerate(left) if len(ids) >= n)
        chosen.append(left.pop(index)[-n:])
    return chosen
