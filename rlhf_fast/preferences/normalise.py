"""Scores on a known scale: mean 0 and standard deviation 1 over responses of the model that PPO starts from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_fast.model.head import ScalarHead
from rlhf_fast.model.roles import Critic, Policy, sequence_scores
from rlhf_fast.preferences.comparisons import EncodedComparison
from rlhf_fast.preferences.config import RewardConfig
from rlhf_fast.rollout.engine import generate
from rlhf_fast.rollout.sampling import Sampling
from rlhf_fast.runtime.distributed import gather, share
from rlhf_fast.runtime.errors import UsageError

SMALLEST_STD = 1e-6


@dataclass(frozen=True)
class Normalisation:
    """A saved score is (s - mean) / std, s being the score that was trained; over `samples` responses."""

    mean: float
    std: float
    samples: int


def choose_prompts(
    comparisons: Sequence[EncodedComparison], config: RewardConfig, context: int | None
) -> list[list[int]]:
    """`normalise_samples` prompts that leave room for a response, in an order of the seed's, again from the first if
    there are too few. Raises `UsageError` if none leaves room."""
    limit = min(config.max_length, context or config.max_length) - config.response_length
    prompts = sorted({tuple(c.prompt) for c in comparisons if len(c.prompt) <= limit})
    if not prompts:
        raise UsageError(
            f"no prompt has {max(limit, 0)} tokens or fewer, so none leaves room for response_length="
            f"{config.response_length} within max_length={config.max_length} and the model's context ({context}). "
            "Lower response_length, or set normalise=False."
        )
    random.Random(config.seed).shuffle(prompts)
    return [list(prompts[i % len(prompts)]) for i in range(config.normalise_samples)]


def normalise(
    critic: Critic, policy: Policy, prompts: list[list[int]], stop: tuple[int, ...], config: RewardConfig
) -> Normalisation:
    """Sample a response of `policy` to each prompt, and change the head of `critic` in place so that their scores have
    mean 0 and standard deviation 1 (Ouyang et al. 2022, Huang et al. 2024). Raises `UsageError` if all score the same.
    """
    sampling = Sampling(config.response_length, stop, temperature=config.temperature)
    own, seeds = share(prompts), [config.seed * 1_000_003 + i for i in share(range(len(prompts)))]
    budget = config.max_tokens_per_micro_batch
    responses = generate(policy, list(own), sampling, seeds=seeds, max_tokens=budget)
    sequences = [prompt + response.tokens for prompt, response in zip(own, responses, strict=True)]
    scores = gather(sequence_scores(critic, sequences, budget)).double()
    mean, std = float(scores.mean()), float(scores.std())
    if not std >= SMALLEST_STD:
        raise UsageError(
            f"the reward model gives {len(prompts)} sampled responses scores with standard deviation {std:.3g}, so it "
            "tells none apart; expected more. Train longer, raise temperature, or set normalise=False."
        )
    assert isinstance(critic.head, ScalarHead)
    critic.head.normalise_(mean, std)
    return Normalisation(mean, std, len(prompts))
