"""The ranking loss: values worked by hand, ties, soft labels, centring, and its gradient."""

from __future__ import annotations

import math
from itertools import pairwise, permutations

import pytest
import torch

from rlhf_fast.preferences.losses import Rankings, plackett_luce_loss


def rankings(*rows: tuple) -> Rankings:
    out = Rankings()
    for row in rows:
        out.add(*row)
    return out


def loss(scores: list[float], *rows: tuple, **options) -> float:
    return float(plackett_luce_loss(torch.tensor(scores, dtype=torch.float64), rankings(*rows), **options))


def order_nll(scores: list[float], order: tuple[int, ...]) -> float:
    """-log P of one complete order, best first, straight from the definition."""
    total = 0.0
    for k, i in enumerate(order):
        total -= scores[i] - math.log(sum(math.exp(scores[j]) for j in order[k:]))
    return total


def test_a_pair_costs_minus_log_sigmoid_of_the_score_difference():
    assert loss([1.5, 0.5], ((1, 2),)) == pytest.approx(math.log(1 + math.exp(-1.0)))
    assert loss([1.5, 0.5], ((2, 1),)) == pytest.approx(math.log(1 + math.exp(1.0)))


def test_three_ranked_responses_by_hand():
    # e^s = 2, 1, 4; order 2 > 0 > 1: P = 4/7 * 2/3
    scores = [math.log(2), 0.0, math.log(4)]
    assert loss(scores, ((2, 3, 1),)) == pytest.approx(-math.log(4 / 7 * 2 / 3))


def test_a_tied_pair_is_a_pair_with_probability_one_half():
    expected = 0.5 * math.log(1 + math.exp(-0.7)) + 0.5 * math.log(1 + math.exp(0.7))
    assert loss([0.7, 0.0], ((1, 1),)) == pytest.approx(expected)
    assert loss([0.7, 0.0], ((1, 1), 0.5)) == pytest.approx(expected)


@pytest.mark.parametrize("ranks", [(1, 1, 1), (1, 2, 2, 2), (2, 1, 2, 3, 3), (5, 5, 1, 1, 9)])
def test_ties_cost_the_mean_over_the_orders_that_the_ranks_allow(ranks):
    scores = [0.3, -1.2, 2.0, 0.9, -0.4][: len(ranks)]
    allowed = [
        order for order in permutations(range(len(ranks))) if all(ranks[a] <= ranks[b] for a, b in pairwise(order))
    ]
    assert loss(scores, (ranks,)) == pytest.approx(sum(order_nll(scores, order) for order in allowed) / len(allowed))


def test_a_probability_is_a_cross_entropy_whatever_the_ranks_say():
    expected = 0.75 * math.log(1 + math.exp(-2.0)) + 0.25 * math.log(1 + math.exp(2.0))
    assert loss([2.0, 0.0], ((1, 2), 0.75)) == pytest.approx(expected)


def test_the_loss_is_the_mean_over_comparisons_or_their_sum_over_a_given_denominator():
    pair, triple = loss([1.0, 0.0], ((1, 2),)), loss([0.5, 2.0, 1.0], ((1, 2, 3),))
    both = [1.0, 0.0, 0.5, 2.0, 1.0]
    assert loss(both, ((1, 2),), ((1, 2, 3),)) == pytest.approx((pair + triple) / 2)
    assert loss(both, ((1, 2),), ((1, 2, 3),), denominator=8) == pytest.approx((pair + triple) / 8)


def test_centring_adds_the_squared_sum_of_a_pair():
    plain = loss([1.0, 3.0], ((1, 2),))
    assert loss([1.0, 3.0], ((1, 2),), centering_coefficient=0.01) == pytest.approx(plain + 0.01 * 16)


def test_adding_a_constant_to_all_scores_changes_only_the_centring():
    ranks = ((1, 1, 3, 2),)
    assert loss([0.1, 2.0, -1.0, 0.4], ranks) == pytest.approx(loss([7.1, 9.0, 6.0, 7.4], ranks))


def test_the_gradient_is_that_of_the_loss():
    scores = torch.tensor([0.3, -1.2, 2.0, 0.9, -0.4, 0.2, 0.1], dtype=torch.float64, requires_grad=True)
    given = rankings(((1, 2, 2, 3, 1),), ((1, 2), 0.8))
    assert torch.autograd.gradcheck(lambda s: plackett_luce_loss(s, given, centering_coefficient=0.1), (scores,))


def test_extreme_scores_give_a_finite_loss_and_gradient():
    scores = torch.tensor([-1e4, 1e4, 0.0], requires_grad=True)
    value = plackett_luce_loss(scores, rankings(((1, 2, 2),)))
    value.backward()
    # first: 1e4 - -1e4 below the best; then the two orders of (1e4, 0): (0 + 1e4) / 2
    assert float(value.detach()) == pytest.approx(2e4 + 5e3)
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, torch.tensor([-1.0, 1.5, -0.5]))
