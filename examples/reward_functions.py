"""Reward functions of your own, which PPO and evaluate import from this file:

F=examples/reward_functions.py
rlhf-fast ppo --reward_funcs $F:short $F:right --reward_weights 1 2 ...

A function says by the names of its parameters what it takes: prompts and responses as texts, prompts as messages,
response_ids, columns of the data. One with `completions`, as TRL's GRPO has it, gets messages for conversations.
"""

from __future__ import annotations

import re
from typing import Any


def short(responses: list[str], **columns: list[Any]) -> list[float]:
    """A cost for each word."""
    return [-len(response.split()) / 100 for response in responses]


def thinks_first(completions: list[Any], **kwargs: list[Any]) -> list[float]:
    """1 for a thought before the answer. Where `<think>` is a special token, set reward_special_tokens: true."""
    texts = [done if isinstance(done, str) else done[-1]["content"] for done in completions]
    return [float(re.match(r"<think>.+?</think>.+", text, re.DOTALL) is not None) for text in texts]


async def right(responses: list[str], answer: list[str | None], **columns: list[Any]) -> list[float | None]:
    """1 for a response that ends with the data's `answer`; rows without one are left to the other rewards."""
    return [
        None if wanted is None else float(response.rstrip(" .").endswith(wanted))
        for response, wanted in zip(responses, answer, strict=True)
    ]
