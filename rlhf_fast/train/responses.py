"""Responses of a policy to prompts, and what the reward gives these."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.prompts import Prompts
from rlhf_fast.model.roles import Policy
from rlhf_fast.rewards.source import RewardBatch, Scores, WeightedRewards, response_texts
from rlhf_fast.rollout.engine import generate
from rlhf_fast.rollout.rollout import Rollout
from rlhf_fast.rollout.sampling import Sampling
from rlhf_fast.train.config import PPORunConfig


def respond(
    policy: Policy, prompts: Prompts, rows: list[int], seeds: list[int], sampling: Sampling, config: PPORunConfig, *,
    max_tokens: int,
) -> Rollout:  # fmt: skip
    """A response to each of `rows` of `prompts`, sampled with its seed; prompts are read `max_tokens` at a time."""
    ids = [prompts.ids[row] for row in rows]
    responses = generate(
        policy, ids, sampling, seeds=seeds,
        max_batch=config.max_rollout_batch, max_tokens=max_tokens, max_kv_cache_gb=config.max_kv_cache_gb,
    )  # fmt: skip
    return Rollout.from_responses(
        ids, [r.tokens for r in responses], finished=[r.finished for r in responses], budget=config.response_length,
        score_at=config.score_at, prompt_rows=rows, seeds=seeds, logprobs=[r.logprobs for r in responses],
        device=policy.model.device,
    )  # fmt: skip


def score_responses(
    reward: WeightedRewards, tokenizer: PreTrainedTokenizerBase, rollout: Rollout, prompts: Prompts
) -> Scores:
    """What the reward gives the responses to rows of `prompts`."""
    rows = rollout.prompt_rows.tolist()
    ids, finished = rollout.responses(), rollout.finished.tolist()
    texts = response_texts(tokenizer, ids, finished, special_tokens=reward.special_tokens)
    columns = {name: [values[row] for row in rows] for name, values in prompts.columns.items()}
    conversations = [prompts.conversations[row] for row in rows]
    texts_of_prompts = [prompts.texts[row] for row in rows]
    tools = [prompts.tools[row] for row in rows]
    batch = RewardBatch(texts_of_prompts, texts, rollout.sequences(), columns, conversations, ids, finished, tools)
    return reward.score(batch)
