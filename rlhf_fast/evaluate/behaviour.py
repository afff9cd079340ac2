"""What a policy's responses are like: length, truncation, variety."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_fast.rollout.diversity import distinct_n, repetition
from rlhf_fast.rollout.engine import Response


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
