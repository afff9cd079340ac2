"""The Plackett-Luce loss of scores against rankings; for two responses it is the Bradley-Terry loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import softplus

MAX_TIED = 12
"""Most responses of one rank in a comparison: the loss visits the 2^m - 1 subsets of m tied ones."""


@dataclass
class Rankings:
    """C comparisons, flat: comparison c ranks the scores offsets[c]..offsets[c+1].

    ranks: one for each score, lower is better, equal is a tie. probabilities: for each comparison P(the first of two
    is better), which then takes the place of its ranks, or None.
    """

    offsets: list[int] = field(default_factory=lambda: [0])
    ranks: list[float] = field(default_factory=list)
    probabilities: list[float | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.probabilities)

    def __iter__(self) -> Iterator[tuple[slice, list[float], float | None]]:
        for start, end, probability in zip(self.offsets[:-1], self.offsets[1:], self.probabilities, strict=True):
            yield slice(start, end), self.ranks[start:end], probability

    def add(self, ranks: tuple[float, ...], probability: float | None = None) -> None:
        self.ranks.extend(ranks)
        self.offsets.append(len(self.ranks))
        self.probabilities.append(probability)


def plackett_luce_loss(
    scores: Tensor, rankings: Rankings, *, centering_coefficient: float = 0.0, denominator: int | None = None
) -> Tensor:
    """Scalar loss, differentiable, in the dtype of scores (M,): the sum over comparisons / `denominator` (default: C).

    A comparison contributes -log P(order), P(order) = prod_k exp(s_k) / sum_{j not better than k} exp(s_j) (Luce 1959,
    Plackett 1975); for two responses -log sigmoid(s_better - s_worse) (Bradley and Terry 1952; Ouyang et al. 2022).
    Ties: the mean of -log P over all orders that the ranks allow, so a tied pair is a pair with probability 1/2.
    With a probability p: -p log sigmoid(s_0 - s_1) - (1 - p) log sigmoid(s_1 - s_0).

    Centring adds centering_coefficient * (2 mean of the comparison's scores)^2, for two responses TRL's
    `center_rewards_coefficient * (s_0 + s_1)^2` (Eisenstein et al. 2023).
    """
    total = scores.new_zeros(())
    for where, ranks, probability in rankings:
        own = scores[where]
        total = total + (_ranked(own, ranks) if probability is None else _soft(own, probability))
        total = total + centering_coefficient * (2 * own.mean()).square()
    return total / (len(rankings) if denominator is None else denominator)


def _soft(scores: Tensor, probability: float) -> Tensor:
    difference = scores[0] - scores[1]
    return probability * softplus(-difference) + (1 - probability) * softplus(difference)


def _ranked(scores: Tensor, ranks: list[float]) -> Tensor:
    """Levels from the worst to the best: each is chosen from itself and everything below."""
    total = scores.new_zeros(())
    below: list[int] = []
    for level in sorted(set(ranks), reverse=True):
        tied = [i for i, rank in enumerate(ranks) if rank == level]
        total = total + _level(scores[tied], scores[below])
        below += tied
    return total


def _level(tied: Tensor, below: Tensor) -> Tensor:
    """The mean over the orders of the m `tied` of sum_k log(sum of exp over those still to come, and `below`) - s_k.

    Over all orders, those still to come at a size are each subset of that size equally often.
    """
    m = len(tied)
    subsets = torch.arange(1, 2**m, device=tied.device)[:, None] >> torch.arange(m, device=tied.device) & 1 == 1
    inside = torch.where(subsets, tied, -torch.inf)
    choices = torch.cat([inside, below.expand(len(subsets), -1)], dim=1).logsumexp(1)
    weights = [1 / math.comb(m, size) for size in subsets.sum(1).tolist()]
    return (choices * choices.new_tensor(weights)).sum() - tied.sum()
