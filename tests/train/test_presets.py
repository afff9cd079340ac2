"""What another library's name means, field by field, and what is said about TRL."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch

from rlhf_fast.train.config import difference_from_trl
from tests.train.cases import estimated, ppo_config, run

TRL = {
    "score_at": "eos+1", "whiten_ddof": 1, "kl_estimator": "k1", "loss_mean": "micro", "vf_coef": 0.1,
    "cliprange": 0.2, "cliprange_value": 0.2, "gamma": 1.0, "lam": 0.95, "dual_clip": None, "log_ratio_clamp": None,
    "kl_coef": 0.05, "num_ppo_epochs": 4, "num_mini_batches": 1, "whiten_rewards": False, "missing_eos_penalty": None,
}  # fmt: skip
OURS = TRL | {"score_at": "eos", "loss_mean": "token"}


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("rlhf_fast", OURS),
        ("trl", TRL),
        ("openrlhf", OURS | {"whiten_ddof": 0, "lam": 1.0, "log_ratio_clamp": 20.0}),
        ("verl", OURS | {"dual_clip": 3.0}),
    ],
)
def test_a_preset_sets_exactly_these_fields(tmp_path, preset, expected):
    config = ppo_config(tmp_path, preset=preset)
    assert {name: getattr(config, name) for name in expected} == expected


def test_a_value_other_than_the_default_wins_over_the_preset(tmp_path):
    assert ppo_config(tmp_path, preset="verl", dual_clip=5.0).dual_clip == 5.0
    assert ppo_config(tmp_path, preset="openrlhf", lam=0.9).lam == 0.9


def test_a_config_made_from_another_is_equal_to_it(tmp_path):
    config = ppo_config(tmp_path, preset="trl")
    again = dataclasses.replace(config)
    assert (again.score_at, again.logit_temperature) == (config.score_at, config.logit_temperature)


def test_trl_divides_logits_by_its_temperature_plus_1e_7_everywhere(tmp_path):
    ppo = run(tmp_path, preset="trl", temperature=0.7)
    assert ppo.config.temperature == 0.7
    assert ppo.config.logit_temperature == ppo.sampling.temperature == 0.7 + 1e-7
    assert run(tmp_path, temperature=0.7).sampling.temperature == 0.7


def test_the_trl_preset_takes_a_step_and_the_score_lands_after_eos(tmp_path):
    ppo = run(tmp_path, preset="trl")
    rollout = estimated(ppo)
    after_eos = rollout.labels[rollout.score_index] == -100
    shorter = (rollout.cu_responses.diff() - after_eos.int()) < 6
    assert torch.equal(after_eos, shorter) and after_eos.any()
    assert all(torch.isfinite(torch.tensor(list(step.values()))).all() for step in ppo.update(rollout))


def test_one_line_says_where_a_trl_user_sees_a_difference(tmp_path):
    notice = difference_from_trl(ppo_config(tmp_path))
    assert notice is not None and "\n" not in notice
    for part in ("score_at=eos (TRL: eos+1)", "loss_mean=token (TRL: micro)", "stop_token=eos (TRL: none)"):
        assert part in notice
    assert "preset=trl" in notice
    under_trl = difference_from_trl(ppo_config(tmp_path, preset="trl"))
    assert under_trl == "unlike TRL: stop_token=eos (TRL: none)."


@pytest.mark.parametrize(
    "options", [{"preset": "trl", "stop_token": "none"}, {"preset": "trl", "stop_token_id": 5}, {"preset": "verl"}]
)
def test_nothing_is_said_where_nothing_differs_or_another_library_is_followed(tmp_path, options, caplog):
    with caplog.at_level(logging.WARNING):
        assert difference_from_trl(ppo_config(tmp_path, **options)) is None
