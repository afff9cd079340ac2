"""Scoring and update leave the device alone: nothing asks for a value before the end of a step."""

from __future__ import annotations

import pytest
import torch

from rlhf_fast.model.critics import PolicyHeadCritic, ReferenceCritic
from rlhf_fast.model.head import ScalarHead
from tests.train.cases import estimated, run
from tests.waits import Waits

OPTIONS = [
    {}, {"score_at": "eos+1"}, {"kl_estimator": "exact", "kl_coef": 0.0}, {"entropy_coef": 0.01, "loss_mean": "micro"},
    {"preset": "verl", "cliprange_value": 0.1}, {"bootstrap_truncated": True},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_scoring_pass_waits_for_nothing(tmp_path, options):
    ppo = run(tmp_path, max_tokens_per_micro_batch=40, **options)
    rollout = ppo.collect()
    with Waits() as waits:
        ppo.score_tokens(rollout)
    assert waits.found == []


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_forward_loss_and_backward_of_an_update_wait_for_nothing(tmp_path, options):
    ppo = run(tmp_path, max_tokens_per_micro_batch=40, per_device_train_batch_size=16, **options)
    rollout = estimated(ppo)
    with Waits() as waits:
        losses = ppo.accumulate(rollout, list(range(16)), rollout.logprobs)
    assert waits.found == [] and len(losses) > 2


def test_an_update_reads_one_tensor_back_at_each_step(tmp_path):
    ppo = run(tmp_path, max_tokens_per_micro_batch=40, num_mini_batches=2, num_ppo_epochs=3)
    rollout = estimated(ppo)
    with Waits() as waits:
        ppo.update(rollout)
    assert waits.found == ["tolist in ppo_metrics.py:add_up"] * 6
