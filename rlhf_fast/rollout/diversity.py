"""How varied responses are, from their token ids."""

from __future__ import annotations

from collections.abc import Sequence


def distinct_n(responses: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams over all n-grams of the responses (Li et al. 2016); NaN where no response has n tokens."""
    grams = [tuple(r[i : i + n]) for r in responses for i in range(len(r) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def repetition(responses: Sequence[Sequence[int]]) -> float:
    """Share of 3-grams that occurred before in the same response, mean over the responses that have any (else 0)."""
    shares = []
    for response in responses:
        grams = [tuple(response[i : i + 3]) for i in range(len(response) - 2)]
        if grams:
            shares.append(1 - len(set(grams)) / len(grams))
    return sum(shares) / len(shares) if shares else 0.0
