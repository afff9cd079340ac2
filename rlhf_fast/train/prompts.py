"""The prompts of a PPO run, tokenised once, and the order in which they are visited; responses to them, and what the
reward gives these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.columns import gather
from rlhf_fast.data.encode import encode_prompt, prompt_text
from rlhf_fast.data.fitting import encode_rows
from rlhf_fast.data.readers import OnBadRow
from rlhf_fast.data.rendering import Rendering, announce_prompts
from rlhf_fast.data.schema import Message, PromptRow
from rlhf_fast.model.roles import Policy
from rlhf_fast.rewards.source import RewardBatch, Scores, WeightedRewards, response_texts
from rlhf_fast.rollout.engine import generate
from rlhf_fast.rollout.rollout import Rollout
from rlhf_fast.rollout.sampling import Sampling
from rlhf_fast.runtime.passes import pass_order
from rlhf_fast.train.config import PPORunConfig


@dataclass
class Prompts:
    """Token ids and text of each prompt; for rewards the other columns (None where a row has no such column) and the
    messages (None where the row is plain text)."""

    ids: list[list[int]]
    texts: list[str]
    columns: dict[str, list[Any]] = field(default_factory=dict)
    conversations: list[list[Message] | None] = field(default_factory=list)
    rendering: Rendering | None = None  # None: given as token ids
    tools: list[list[dict[str, Any]] | None] = field(default_factory=list)  # that each prompt offers

    @classmethod
    def encode(
        cls, tokenizer: PreTrainedTokenizerBase, rows: list[PromptRow], limit: int | None, *,
        source: str, on_bad_row: OnBadRow,
    ) -> Prompts:  # fmt: skip
        """Tokenise and check every prompt, before anything else costs time; `limit` tokens fit beside a response."""
        fitting = encode_rows(
            rows, lambda row: encode_prompt(tokenizer, row.prompt, tools=row.tools, max_length=limit),
            noun="prompt", source=source, on_bad_row=on_bad_row,
        )  # fmt: skip
        kept, ids = [row for row, _ in fitting], [ids for _, ids in fitting]
        return cls(
            ids,
            [prompt_text(tokenizer, row.prompt, row.tools) for row in kept],
            gather(row.columns for row in kept),
            [None if isinstance(row.prompt, str) else row.prompt for row in kept],
            announce_prompts(tokenizer, kept, ids, source),
            [row.tools for row in kept],
        )

    def __post_init__(self) -> None:
        self.conversations = self.conversations or [None] * len(self.ids)
        self.tools = self.tools or [None] * len(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, iteration: int, size: int, seed: int) -> list[int]:
        """Rows of batch `iteration`: passes over all prompts without a break, each pass in an order of its own."""
        places = [divmod(position, len(self)) for position in range(iteration * size, (iteration + 1) * size)]
        orders = {number: pass_order(len(self), seed, number) for number in {number for number, _ in places}}
        return [orders[number][index] for number, index in places]


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
