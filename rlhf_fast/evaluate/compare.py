"""Two policies on the same held-out prompts with the same seeds: what each says and what rewards make of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.prompts import Prompts
from rlhf_fast.data.schema import Prompt
from rlhf_fast.model.batches import NO_SEQUENCES, MicroBatches, by_tokens
from rlhf_fast.model.packed import Packed
from rlhf_fast.model.roles import Policy
from rlhf_fast.model.trunk import keep_trunk
from rlhf_fast.rewards.source import RewardBatch, RewardSource, checked, response_texts
from rlhf_fast.rollout.engine import Response, generate
from rlhf_fast.rollout.rollout import distinct_n, repetition
from rlhf_fast.rollout.sampling import Sampling
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.statistics import Interval, mean_difference, over_optimised, win_rate
from rlhf_kernels import IGNORED


@dataclass(frozen=True)
class RewardComparison:
    """One reward on both policies, over the prompts of which it judges both responses. win_rate: how often second
    beats first on a prompt, ties half."""

    name: str
    first_mean: float
    second_mean: float
    difference: Interval  # second - first, paired by prompt
    win_rate: Interval


@dataclass(frozen=True)
class Pair:
    """The responses to one prompt, and their scores by reward."""

    prompt: Prompt
    first: str
    second: str
    first_scores: dict[str, float | None]  # None: the reward does not judge it
    second_scores: dict[str, float | None]


@dataclass(frozen=True)
class Comparison:
    """Everything that `compare` finds. `rewards[0]` is the reward that second was trained on, where there are more."""

    first_name: str
    second_name: str
    rewards: list[RewardComparison]
    kl: float | None  # of second to first, nats a response; None for greedy responses, which sample nothing
    first: Behaviour
    second: Behaviour
    pairs: list[Pair]

    def __str__(self) -> str:
        lines = [f"{self.second_name} against {self.first_name} on {len(self.pairs)} prompts"]
        lines += [f"  {r.name}: {r.first_mean:.3g} -> {r.second_mean:.3g}, wins {r.win_rate}" for r in self.rewards]
        if self.kl is not None:
            lines.append(f"  KL {self.kl:.2f} nats a response")
        if self.over_optimised_under:
            lines.append(f"  over-optimised: {', '.join(self.over_optimised_under)} fell")
        return "\n".join(lines)

    @property
    def over_optimised_under(self) -> list[str]:
        """Names of the other rewards that fell while the first one rose."""
        proxy, *others = self.rewards
        return [r.name for r in others if over_optimised(proxy.difference.value, r.difference.value)]


def compare(
    first: Policy, second: Policy, prompts: Prompts, rewards: Sequence[RewardSource],
    tokenizer: PreTrainedTokenizerBase, sampling: Sampling, *,
    names: tuple[str, str] = ("before", "after"), seed: int = 0, max_batch: int = 32, max_tokens: int = 2048,
    max_kv_cache_gb: float | None = None, special_tokens: bool = False,
) -> Comparison:  # fmt: skip
    """One response of each policy to each prompt (prompt i has the same seed for both), scored by every reward.

    first, second share a vocabulary; they may share a base. max_batch, max_tokens, max_kv_cache_gb: memory and
    speed only, as in `generate`. special_tokens: whether rewards read responses with theirs (`response_texts`).
    Raises `UsageError` without rewards, or if a reward gives a score that is not finite or judges no prompt.
    """
    if not rewards or len({reward.name for reward in rewards}) != len(rewards):
        raise UsageError(f"rewards are named {[r.name for r in rewards]}; expected one or more, with different names.")
    seeds = [(seed << 32) + i for i in range(len(prompts))]
    limits: dict[str, Any] = {"max_batch": max_batch, "max_tokens": max_tokens, "max_kv_cache_gb": max_kv_cache_gb}
    sampled = [generate(policy, prompts.ids, sampling, seeds=seeds, **limits) for policy in (first, second)]
    texts = [
        response_texts(tokenizer, [r.tokens for r in part], [r.finished for r in part], special_tokens=special_tokens)
        for part in sampled
    ]
    batches = [_reward_batch(prompts, *part) for part in zip(texts, sampled, strict=True)]
    sequences = [sequence for batch in batches for sequence in batch.sequences]
    kl = None
    with keep_trunk((first.model, second.model), sequences, MicroBatches(max_tokens)):
        scores = [{r.name: _judged(checked(r, batch)) for r in rewards} for batch in batches]
        if sampling.temperature > 0:
            ratios = log_ratios(
                second, first, prompts.ids, sampled[1], temperature=sampling.temperature, max_tokens=max_tokens
            )
            kl = float(ratios.mean())
    return Comparison(
        *names, [_compare_scores(r.name, scores[0][r.name], scores[1][r.name]) for r in rewards], kl,
        behaviour(sampled[0]), behaviour(sampled[1]), _pairs(prompts, texts, scores),
    )  # fmt: skip


@torch.no_grad()
def log_ratios(
    policy: Policy, reference: Policy, prompts: list[list[int]], responses: list[Response], *,
    temperature: float, max_tokens: int,
) -> Tensor:  # fmt: skip
    """(B,) f32: the sum over a response of log p(y_t) - log r(y_t); on samples of `policy` its mean estimates the KL
    of policy to reference a response (k1; Schulman 2020)."""
    out = torch.empty(len(prompts))
    sequences = [prompt + response.tokens for prompt, response in zip(prompts, responses, strict=True)]
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))

    def score(rows: list[int], weight: float) -> None:
        labels = [[IGNORED] * len(prompts[i]) + responses[i].tokens for i in rows]
        packed = Packed.from_sequences([sequences[i] for i in rows], labels, policy.model.device)
        packed = packed.with_trunk(policy.model, [sequences[i] for i in rows])
        log_p = policy.logprobs(packed, temperature=temperature).logprobs
        log_r = reference.logprobs(packed, temperature=temperature).logprobs
        parts = (log_p - log_r).cpu().split([len(responses[i].tokens) for i in rows])
        out[rows] = torch.stack([part.sum() for part in parts])

    cut = by_tokens([len(sequences[i]) for i in order], order)
    MicroBatches(max_tokens).run(policy.model, cut, score, spare=NO_SEQUENCES)
    return out


def _reward_batch(prompts: Prompts, texts: list[str], responses: list[Response]) -> RewardBatch:
    sequences = [prompt + response.tokens for prompt, response in zip(prompts.ids, responses, strict=True)]
    ids = [response.tokens for response in responses]
    finished = [response.finished for response in responses]
    given = prompts.columns, prompts.conversations
    return RewardBatch(prompts.texts, texts, sequences, *given, ids, finished, prompts.tools)


def _judged(scores: Tensor) -> list[float | None]:
    return [None if math.isnan(score) else score for score in scores.tolist()]


def _compare_scores(name: str, first_scores: list[float | None], second_scores: list[float | None]) -> RewardComparison:
    pairs = [(a, b) for a, b in zip(first_scores, second_scores, strict=True) if a is not None and b is not None]
    if not pairs:
        raise UsageError(
            f"reward {name!r} judges no prompt's two responses: it gave None. Leave it out of the rewards."
        )
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    means = sum(first) / len(first), sum(second) / len(second)
    return RewardComparison(name, *means, mean_difference(first, second), win_rate(first, second))


def _pairs(prompts: Prompts, texts: list[list[str]], scores: list[dict[str, list[float | None]]]) -> list[Pair]:
    return [
        Pair(
            conversation or prompts.texts[i], texts[0][i], texts[1][i],
            {name: values[i] for name, values in scores[0].items()},
            {name: values[i] for name, values in scores[1].items()},
        )
        for i, conversation in enumerate(prompts.conversations)
    ]  # fmt: skip


@dataclass(frozen=True)
class Behaviour:
    """What a policy's responses are like, whatever they are worth."""

    mean_length: float  # tokens, the stop token included
    truncated_fraction: float  # share that ran out of budget
    distinct_2: float
    repetition: float


def behaviour(responses: Sequence[Response]) -> Behaviour:
    tokens = [response.tokens for response in responses]
    return Behaviour(
        mean_length=sum(map(len, tokens)) / len(tokens),
        truncated_fraction=sum(not response.finished for response in responses) / len(responses),
        distinct_2=distinct_n(tokens, 2),
        repetition=repetition(tokens),
    )
