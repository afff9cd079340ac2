"""Passes cut into steps: every row of a pass is in one of them, also of runs that are resumed for longer."""

from __future__ import annotations

import pytest

from rlhf_fast.runtime.passes import MORE_STEPS, Passes, round_up, too_few
from rlhf_fast.train.ppo import PPO
from tests.train.cases import run


@pytest.mark.parametrize(
    ("rows", "size", "passes", "sizes"),
    [
        (23, 16, 1, [16, 7]),
        (60, 16, 1, [16, 16, 16, 12]),
        (5, 16, 2, [5, 5]),
        (17, 8, 1.5, [8, 8, 1, 8, 8]),
        (16, 8, 1, [8, 8]),
        (30, 10, 0.1, [10]),  # 0.3 steps
    ],
)
def test_steps_round_up_and_no_row_of_a_pass_is_left_out(rows, size, passes, sizes):
    cut = Passes(rows, size, seed=3)
    steps = [cut.step(step) for step in range(cut.steps(passes))]
    assert [len(step) for step in steps] == sizes
    of_a_pass = -(-rows // size)
    for first in range(0, int(passes) * of_a_pass, of_a_pass):
        assert sorted(row for step in steps[first : first + of_a_pass] for row in step) == list(range(rows))


def test_steps_are_drawn_from_the_seed_and_their_number_alone():
    cut, again = Passes(23, 16, seed=3), Passes(23, 16, seed=3)
    forwards = [cut.step(step) for step in range(6)]
    assert [again.step(step) for step in reversed(range(6))] == forwards[::-1]
    assert forwards[0] + forwards[1] != forwards[2] + forwards[3]
    assert Passes(23, 16, seed=4).step(0) != forwards[0]


def test_groups_stay_together():
    cut = Passes(7, 3, seed=0, groups=[[0, 3, 6], [1], [2, 5], [4]])
    order = [row for step in range(3) for row in cut.step(step)]
    assert sorted(order) == list(range(7))
    assert order[order.index(0) :][:3] == [0, 3, 6] and order[order.index(2) :][:2] == [2, 5]


@pytest.mark.parametrize(("number", "whole"), [(0.1 * 3 * 10, 3), (2.2, 3), (16.8, 17), (7, 7), (0.7 * 100 * 10, 700)])
def test_rounding_up_does_not_count_what_floating_point_added(number, whole):
    assert round_up(number) == whole


def test_steps_in_words():
    assert Passes(60, 16, 0).describe(1) == "60 rows are 4 steps of 16 (the last of a pass: 12)"
    assert Passes(16, 16, 0).describe(1) == "16 rows are 1 step of 16"
    assert Passes(5, 16, 0).describe(3, "comparisons") == "3 passes over 5 comparisons are 3 steps of 5"
    assert Passes(4800, 16, 0).describe(0.5) == "0.5 passes over 4,800 rows are 150 steps of 16"
    assert too_few(10, MORE_STEPS) == ""
    assert too_few(1, MORE_STEPS).startswith("1 step can change little: more num_train_epochs")
    assert too_few(9, MORE_STEPS).startswith("9 steps can change little")


@pytest.mark.parametrize(("passes", "iterations"), [(1.0, 3), (0.3, 1), (2.0, 6)])
def test_ppo_meets_every_prompt_of_its_passes(tmp_path, passes, iterations):
    """8 prompts in batches of 3: 0.3 passes are 2.4 prompts."""
    ppo: PPO = run(tmp_path, total_episodes=None, num_train_epochs=passes, per_device_train_batch_size=3)
    assert ppo.iterations == iterations
    met = [row for iteration in range(iterations) for row in ppo.prompts.batch(iteration, 3, ppo.config.seed)]
    assert all(met.count(row) >= int(passes) for row in range(8)) and len(met) == 3 * iterations
