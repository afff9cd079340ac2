"""Held-out prompts: what the policy scores on them, and a table of what it says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from rlhf_fast.data.prompts import Prompts
from rlhf_fast.rollout.scoring import score_rollout
from rlhf_fast.runtime.distributed import own_share, sum_over_processes
from rlhf_fast.runtime.shown import printable
from rlhf_fast.train.ppo import PPO, respond, score_responses
from rlhf_fast.train.ppo_metrics import per_response

NEARLY_GREEDY = 0.01 + 1e-7  # the temperature of TRL's completions
SHOWN = 5  # rows of the table that are printed


@dataclass(frozen=True)
class Completion:
    query: str
    response: str
    score: float


@torch.no_grad()
def evaluate(ppo: PPO, prompts: Prompts) -> dict[str, float]:
    """Mean score, mean KL to the reference (nats a response) and mean length of one sampled response to each prompt.

    The seeds are the same each time, so that two evaluations differ by the policy alone.
    """
    c, rows, budget = ppo.config, list(range(len(prompts))), ppo.micro_batches.tokens
    seeds = list(own_share(_seeds(ppo, len(rows))))
    rollout = respond(ppo.policy, prompts, list(own_share(rows)), seeds, ppo.sampling, c, max_tokens=budget)
    score_rollout(
        rollout, ppo.policy, ppo.reference, ppo.critic, ppo.micro_batches,
        temperature=c.logit_temperature, kl_estimator=c.kl_estimator,
    )  # fmt: skip
    kl, lengths = per_response(rollout.kl, rollout), map(len, rollout.responses())
    sums = sum_over_processes(
        float(score_responses(ppo.reward, ppo.tokenizer, rollout, prompts).total.sum()), float(kl.sum()), sum(lengths)
    )
    names = ("objective/scores", "objective/kl", "rollout/response_length")
    return {name: value / len(rows) for name, value in zip(names, sums, strict=True)}


def complete(ppo: PPO, prompts: Prompts, count: int | None) -> list[Completion]:
    """A nearly greedy response to each of the first `count` prompts (None: to all), with its score."""
    rows = list(range(len(prompts)))[:count]
    sampling = replace(ppo.sampling, temperature=NEARLY_GREEDY)
    seeds = _seeds(ppo, len(rows))
    rollout = respond(ppo.policy, prompts, rows, seeds, sampling, ppo.config, max_tokens=ppo.micro_batches.tokens)
    texts = ppo.tokenizer.batch_decode(rollout.responses())
    scores = score_responses(ppo.reward, ppo.tokenizer, rollout, prompts).total.tolist()
    return [Completion(prompts.texts[row], text, score) for row, text, score in zip(rows, texts, scores, strict=True)]


def show(completions: list[Completion]) -> None:
    table = Table("query", "model response", "score", show_lines=True)
    for one in completions[:SHOWN]:
        table.add_row(printable(one.query), printable(one.response), f"{one.score:.4g}")
    Console().print(table, markup=False)


def send_to_wandb(completions: list[Completion]) -> None:
    """Log the table to the Weights & Biases run that is open, if there is one."""
    import wandb

    if wandb.run is not None:
        data: list[list[Any]] = [[one.query, one.response, one.score] for one in completions]
        wandb.log({"completions": wandb.Table(columns=["query", "model response", "score"], data=data)})


def _seeds(ppo: PPO, count: int) -> list[int]:
    """Seeds that no rollout of training uses: those have the bit below `seed` clear."""
    return [(ppo.config.seed << 32) + (1 << 31) + i for i in range(count)]
