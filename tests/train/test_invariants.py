"""What is checked in every run: each contradiction stops it, each rounding passes."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_fast.model.roles import Policy
from rlhf_fast.rollout.rollout import Rollout
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.train.ppo_metrics import InvariantError, check_entropy, check_first_ratio, check_scored
from tests.train.cases import estimated, run


def scored(logprobs=(-1.0, -2.0), ref_logprobs=(-1.0, -2.0), kl=(0.0, 0.0)) -> Rollout:
    rollout = Rollout.from_responses([[5]], [[6, 7]], finished=[True], budget=2)
    for name, values in (("logprobs", logprobs), ("ref_logprobs", ref_logprobs), ("kl", kl)):
        setattr(rollout, name, torch.tensor(values))
    return rollout


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"logprobs": (0.1, -1.0)}, {}, "logprobs reach 0.1"),
        ({"ref_logprobs": (-1.0, 123.0)}, {}, "ref_logprobs reach 123"),
        ({"logprobs": (math.nan, -1.0)}, {}, "logprobs reach nan"),
        ({"kl": (-2e-5, 1.0)}, {"exact": True}, "exact KL"),
        ({"kl": (math.nan, 1.0)}, {"exact": True}, "exact KL"),
        ({"kl": (3e-4, 0.0)}, {"first": True}, "did not start as the reference"),
        ({"kl": (0.03, 0.0)}, {"first": True, "dtype": torch.bfloat16}, "did not start as the reference"),
    ],
)
def test_scores_that_cannot_be_stop_the_run(columns, options, message):
    settings = {"first": False, "exact": False, "dtype": torch.float32} | options
    with pytest.raises(InvariantError, match=message):
        check_scored(scored(**columns), **settings)


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        ({"logprobs": (0.0, -1.0)}, {}),
        ({"kl": (-0.5, -0.5)}, {}),  # an estimate of one sample may be negative
        ({"kl": (-5e-6, 0.0)}, {"exact": True}),
        ({"kl": (1.5e-4, 0.0)}, {"first": True}),  # a mean of 7.5e-5 a token
        ({"kl": (0.015, 0.0)}, {"first": True, "dtype": torch.bfloat16}),
    ],
)
def test_scores_that_may_be_pass(columns, options):
    check_scored(scored(**columns), **({"first": False, "exact": False, "dtype": torch.float32} | options))


def test_an_entropy_below_zero_stops_the_run():
    check_entropy([0.0, -5e-6])
    check_entropy([])
    with pytest.raises(InvariantError, match="entropy of a token"):
        check_entropy([1.0, -0.01])
    with pytest.raises(InvariantError):
        check_entropy([float("nan")])


def test_every_update_checks_its_entropies(tmp_path, monkeypatch):
    ppo = run(tmp_path)
    rollout = estimated(ppo)
    honest = Policy.read

    def broken(*args, **options):
        scored = honest(*args, **options)
        return scored._replace(entropy=scored.entropy - 10)

    monkeypatch.setattr(Policy, "read", broken)
    with pytest.raises(InvariantError, match="entropy of a token"):
        ppo.update(rollout)


@pytest.mark.parametrize(
    ("ratio", "clipfrac", "dtype", "device", "holds"),
    [
        (1 + 5e-6, 0.0, torch.float32, "cpu", True),
        (1 + 2e-5, 0.0, torch.float32, "cpu", False),
        (1.0, 0.01, torch.float32, "cpu", False),
        (1 + 9e-4, 0.01, torch.bfloat16, "cpu", True),
        (1 + 2e-3, 0.0, torch.bfloat16, "cpu", False),
        (1 + 9e-5, 0.0, torch.float32, "cuda", True),
        (1 + 2e-4, 0.0, torch.float32, "cuda", False),
        (1.0, 0.01, torch.float32, "cuda", False),
        (1 - 1e-2, 0.01, torch.bfloat16, "cuda", True),
        (1 - 3e-2, 0.01, torch.bfloat16, "cuda", False),
    ],
)
def test_the_first_minibatch_sees_the_network_that_was_scored(ratio, clipfrac, dtype, device, holds):
    if holds:
        check_first_ratio(ratio, clipfrac, dtype, torch.device(device))
    else:
        with pytest.raises(InvariantError, match=f"in {dtype} on {device}: scoring and update do not see"):
            check_first_ratio(ratio, clipfrac, dtype, torch.device(device))


def test_a_script_that_allows_tf32_is_checked_as_bfloat16_is(monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    check_first_ratio(1.01, 0.01, torch.float32, torch.device("cuda"))
    with pytest.raises(InvariantError):
        check_first_ratio(1.03, 0.0, torch.float32, torch.device("cuda"))
    with pytest.raises(InvariantError):
        check_first_ratio(1.01, 0.0, torch.float32, torch.device("cpu"))


def test_a_policy_that_changed_between_scoring_and_update_is_noticed(tmp_path):
    ppo = run(tmp_path)
    rollout = estimated(ppo)
    rollout.logprobs -= 1e-3
    with pytest.raises(InvariantError, match="do not see"):
        ppo.update(rollout)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "exact"])
def test_the_kl_is_exactly_zero_before_the_first_update_under_every_estimator(tmp_path, estimator):
    rollout = estimated(run(tmp_path, kl_estimator=estimator, kl_coef=0.0))
    assert rollout.kl.abs().max() == 0


def test_a_loss_that_is_not_finite_is_skipped_and_counted_and_three_in_a_row_stop_the_run(tmp_path):
    ppo = run(tmp_path, num_ppo_epochs=2)
    rollout = estimated(ppo)
    before = [parameter.clone() for parameter in ppo.optimiser.parameters]
    good = rollout.advantages.clone()
    rollout.advantages[0] = math.nan
    ppo.update(rollout)
    assert ppo.optimiser.skipped == 2
    assert all(torch.equal(a, b) for a, b in zip(before, ppo.optimiser.parameters, strict=True))
    rollout.advantages = good
    ppo.update(rollout)
    assert (ppo.optimiser.skipped, ppo.optimiser.skipped_in_a_row) == (2, 0)
    ppo.iteration = 1
    rollout = estimated(ppo)
    rollout.advantages[0] = math.inf
    ppo.update(rollout)
    ppo.update(rollout)
    with pytest.raises(UsageError, match=r"4 optimiser steps in a row.*lower learning_rate"):
        ppo.step()
