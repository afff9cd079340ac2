"""The metrics of an iteration by hand, and the warning that comes of two of them."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from rlhf_fast.rewards.source import Scores
from rlhf_fast.rollout.rollout import Rollout
from rlhf_fast.train.ppo_metrics import CollapseWatch, explained_variance, summarise
from rlhf_fast.train.ppo_run import run_of
from tests.train.cases import run

UPDATE = {
    "approx_kl": 0.1, "clipfrac": 0.2, "entropy": 1.5, "policy_loss": -0.3, "value_loss": 0.4, "value_clipfrac": 0.5,
    "ratio_mean": 1.1, "grad_norm": 2.0,
}  # fmt: skip


def filled() -> Rollout:
    """Two responses, the first with a slot after its EOS that must not count as a token."""
    rollout = Rollout.from_responses(
        [[5], [6, 7]], [[8, 2], [9, 9, 9]], finished=[True, False], budget=3, score_at="eos+1",
        logprobs=[[-1.0, -2.0], [-0.5, -0.5, -1.0]],
    )  # fmt: skip
    columns = {
        "logprobs": [-1.0, -2.2, 0.0, -0.5, -0.5, -1.0], "kl": [0.1, 0.3, 0.0, 0.2, 0.2, 0.2],
        "values": [1.0, 0.0, 2.0, 1.0, 1.0, 1.0], "returns": [1.0, 1.0, 3.0, 0.0, 1.0, 0.0],
    }  # fmt: skip
    for name, values in columns.items():
        setattr(rollout, name, torch.tensor(values))
    return rollout


def test_every_metric_of_an_iteration_by_hand():
    scores = Scores(torch.tensor([2.0, -1.0]), {"helpful": torch.tensor([4.0, 0.0])})
    got = summarise(filled(), scores, [UPDATE, UPDATE | {"approx_kl": 0.3, "grad_norm": 4.0}], kl_coef=0.5)
    residual = torch.tensor([0.0, 1.0, 1.0, -1.0, 0.0, -1.0])  # returns - values; mean 0
    spread = torch.tensor([1.0, 1.0, 3.0, 0.0, 1.0, 0.0])  # mean 1
    wanted = {
        "objective/kl": (0.4 + 0.6) / 2, "objective/entropy": (3.2 + 2.0) / 2,
        "objective/non_score_reward": -0.5 * 0.5, "objective/scores": 0.5, "objective/rlhf_reward": 0.25,
        "objective/kl_coef": 0.5, "val/explained_variance": 1 - float((residual**2).sum() / ((spread - 1) ** 2).sum()),
        "val/num_eos_tokens": 1.0, "rollout/truncated_fraction": 0.5, "rollout/response_length": 2.5,
        "rollout/distinct_2": 2 / 3, "rollout/repetition": 0.0, "rollout/logprob_mismatch": 0.2 / 5,
        "reward/helpful": 2.0, "policy/approxkl_avg": 0.2, "policy/clipfrac_avg": 0.2, "policy/entropy_avg": 1.5,
        "loss/policy_avg": -0.3, "loss/value_avg": 0.4, "val/clipfrac_avg": 0.5, "val/ratio": 1.1, "grad_norm": 3.0,
    }  # fmt: skip
    assert got == pytest.approx(wanted, abs=1e-6)


def test_a_critic_worse_than_a_constant_has_a_negative_explained_variance():
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(torch.tensor([3.0, 2.0, 1.0]), returns) == pytest.approx(-3.0)
    assert explained_variance(returns + 7, returns) == pytest.approx(1.0)
    assert math.isnan(explained_variance(returns, torch.ones(3)))


def test_a_run_logs_them_with_learning_rate_episode_and_skipped_steps(tmp_path):
    metrics = run(tmp_path, total_episodes=32, lr_scheduler_type="linear", num_ppo_epochs=1).step()
    assert (metrics["episode"], metrics["skipped_steps"], metrics["lr"]) == (16, 0, pytest.approx(0.005))
    assert math.isfinite(metrics["val/explained_variance"])


def test_the_adaptive_coefficient_of_an_iteration_is_logged_and_changes_for_the_next(tmp_path):
    ppo = run(tmp_path, kl_coef=0.1, kl_target=6.0, kl_horizon=160)
    assert ppo.step()["objective/kl_coef"] == pytest.approx(0.1)
    # KL 0, an error of -1 clipped to -0.2; 16 episodes of a horizon of 160
    assert ppo.step()["objective/kl_coef"] == pytest.approx(0.1 * (1 - 0.2 * 0.1))


def look(watch: CollapseWatch, distinct: float, repetition: float = 0.0) -> None:
    watch.look({"rollout/distinct_2": distinct, "rollout/repetition": repetition, "rollout/truncated_fraction": 0.0})


def test_collapse_is_warned_of_once_for_sameness_and_once_for_repetition(caplog):
    watch = CollapseWatch()
    with caplog.at_level(logging.WARNING):
        look(watch, 0.8)
        look(watch, 0.49)  # above 0.6 of the first
        assert not caplog.records
        look(watch, 0.47)
        look(watch, 0.3, 0.31)
        look(watch, 0.3, 0.9)
    assert [record.message[15:25] for record in caplog.records] == ["distinct-2", "31% of the"]
    assert "Raise kl_coef" in caplog.text


def test_a_first_iteration_without_two_tokens_does_not_blind_the_watch(caplog):
    watch = CollapseWatch()
    with caplog.at_level(logging.WARNING):
        look(watch, math.nan)
        look(watch, 0.8)
        look(watch, 0.1)
    assert "fell from 0.80 to 0.10" in caplog.text


def cut(watch: CollapseWatch, share: float) -> None:
    watch.look({"rollout/distinct_2": 0.8, "rollout/repetition": 0.0, "rollout/truncated_fraction": share})


@pytest.mark.parametrize(("shares", "said"), [([0.7, 0.74, 0.0], []), ([0.75], ["75%"]), ([0.1, 0.9, 1.0], ["90%"])])
def test_a_budget_that_cuts_most_responses_is_said_once(caplog, shares, said):
    watch, endless = CollapseWatch(budget=53), CollapseWatch()
    for share in shares:
        cut(watch, share)
        cut(endless, share)  # nothing ends a response before its budget: all are cut, as was asked for
    assert [record.message[:3] for record in caplog.records] == said
    assert all("cut off by response_length=53 before they ended" in record.message for record in caplog.records)


def test_what_a_run_said_of_cut_responses_is_not_said_again_after_a_resume(caplog):
    first, second = CollapseWatch(budget=8), CollapseWatch(budget=8)
    cut(first, 0.9)
    second.load_state(first.state())
    cut(second, 1.0)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("options", "budget"), [({}, 6), ({"stop_token": "none"}, None), ({"stop_token": "none", "stop": ["7"]}, 6)]
)
def test_responses_that_nothing_ends_are_not_said_to_be_cut(tmp_path, options, budget):
    assert run_of(run(tmp_path, **options), {}, lambda folder: None).saved["collapse"].budget == budget
