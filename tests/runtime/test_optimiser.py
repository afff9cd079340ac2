"""AdamW, clipping and schedule by hand, with every field of a config that reaches them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from rlhf_fast.runtime.config import StageConfig
from rlhf_fast.runtime.errors import StepFailed, UsageError
from rlhf_fast.runtime.optimiser import Optimiser


def optimiser(total: int = 10, **options) -> tuple[nn.Parameter, nn.Parameter, Optimiser]:
    defaults = {"use_cpu": True, "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    config = StageConfig(output_dir="unused", **(defaults | options))
    matrix, vector = nn.Parameter(torch.ones(1, 1)), nn.Parameter(torch.ones(1))
    return matrix, vector, Optimiser.build(config, [("matrix", matrix), ("vector", vector)], total)


def step(parts, matrix_gradient: float, vector_gradient: float = 0.0) -> float:
    matrix, vector, own = parts
    matrix.grad, vector.grad = torch.full((1, 1), matrix_gradient), torch.full((1,), vector_gradient)
    return own.step(0.0)


def test_the_norm_is_that_before_clipping_and_clipping_keeps_the_direction():
    parts = optimiser(max_grad_norm=1.0, adam_beta1=0.0, adam_beta2=0.0, adam_epsilon=1.0)
    assert step(parts, 3.0, 4.0) == pytest.approx(5.0)
    # clipped to (0.6, 0.8); Adam without memory moves by lr * g / (|g| + 1)
    assert float(parts[0].detach()) == pytest.approx(1 - 0.1 * 0.6 / 1.6, abs=1e-6)
    assert float(parts[1].detach()) == pytest.approx(1 - 0.1 * 0.8 / 1.8, abs=1e-6)


def test_weight_decay_shrinks_matrices_only():
    parts = optimiser(weight_decay=0.5)
    step(parts, 0.0)
    assert (float(parts[0].detach()), float(parts[1].detach())) == (pytest.approx(0.95), 1.0)


def test_betas_and_epsilon_are_adams():
    parts = optimiser(adam_beta1=0.5, adam_beta2=0.75, adam_epsilon=0.25)
    step(parts, 1.0)
    step(parts, 2.0)
    first = 0.1 * 1 / (1 + 0.25)
    mean, square = (0.5 * 0.5 + 0.5 * 2) / 0.75, (0.75 * 0.25 + 0.25 * 4) / (1 - 0.75**2)
    assert float(parts[0].detach()) == pytest.approx(1 - first - 0.1 * mean / (math.sqrt(square) + 0.25), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"lr_scheduler_type": "linear"}, [0.1, 0.075, 0.05, 0.025]),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2}, [0.0, 0.05, 0.1, 0.1]),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.3}, [0.0, 0.05, 0.1, 0.1]),  # ceil(1.2)
        ({"lr_scheduler_type": "cosine"}, [0.05 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]),
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 1.0}},
            [0.05 * (1 + math.cos(math.pi * 2 * i / 4)) for i in range(4)],
        ),
    ],
)
def test_schedules_by_hand(options, rates):
    parts = optimiser(total=4, **options)
    seen = []
    for _ in rates:
        seen.append(parts[2].learning_rate)
        step(parts, 1.0)
    assert seen == pytest.approx(rates, abs=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "expected one of linear, .* It follows evaluations"),
        ({"lr_scheduler_type": "greedy"}, "expected one of linear, .* It follows evaluations"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "Set lr_scheduler_kwargs"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"cycles": 1}}, "Set lr_scheduler_kwargs"),
    ],
)
def test_a_schedule_that_cannot_run_is_refused_before_the_first_step(options, message):
    with pytest.raises(UsageError, match=message):
        optimiser(**options)


@pytest.mark.parametrize(("loss", "gradient"), [(math.nan, 1.0), (math.inf, 1.0), (0.0, math.nan), (0.0, math.inf)])
def test_what_is_not_finite_is_skipped_counted_and_three_in_a_row_are_refused(loss, gradient):
    matrix, vector, own = optimiser(lr_scheduler_type="linear")

    def bad() -> None:
        matrix.grad, vector.grad = torch.full((1, 1), gradient), torch.zeros(1)
        own.step(loss)

    bad()
    bad()
    assert own.skipped == 2 and float(matrix.detach()) == 1 and own.learning_rate == 0.1 and matrix.grad is None
    step((matrix, vector, own), 1.0)
    assert own.skipped == 2 and float(matrix.detach()) == pytest.approx(0.9)
    bad()
    bad()
    own.refuse_stuck()
    bad()
    with pytest.raises(StepFailed, match=f"3 optimiser steps in a row .* loss {loss}, gradient norm "):
        own.refuse_stuck()
    saved = own.state()
    own.load_state(saved)
    own.refuse_stuck()  # a run that goes on tries again
    assert own.skipped == 5 and saved.facts["in_a_row"] == 3


def test_frozen_parameters_are_left_out():
    config = StageConfig(output_dir="unused", use_cpu=True)
    frozen = nn.Parameter(torch.ones(1, 1), requires_grad=False)
    assert Optimiser.build(config, [("a", frozen), ("b", nn.Parameter(torch.ones(1)))], 1).parameters[0].ndim == 1
