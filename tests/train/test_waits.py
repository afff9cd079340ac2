"""Scoring and update leave the device alone: nothing asks for a value before the end of a step."""

from __future__ import annotations

import pytest
import torch

from rlhf_fast.model.roles import PolicyHeadCritic, ReferenceCritic
from rlhf_fast.model.shared import ScalarHead
from rlhf_fast.train.ppo_metrics import check_scored
from tests.train.cases import estimated, run
from tests.waits import OURS, Waits

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
    once = ["tolist in rollout.py:sequences", "cpu in roles.py:sequence_scores"]  # however many micro-batches
    assert waits.found == (once if "bootstrap_truncated" in options else [])


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
    assert waits.found == ["tolist in ppo_metrics.py:read_back"] * 6


@pytest.mark.parametrize("critic", [PolicyHeadCritic(ScalarHead(32)), ReferenceCritic(32)], ids=["policy", "reference"])
def test_critics_without_a_forward_of_their_own_wait_for_nothing(tmp_path, critic):
    ppo = run(tmp_path, critic=critic, max_tokens_per_micro_batch=40)
    rollout = ppo.collect()
    with Waits() as waits:
        ppo.score_tokens(rollout)
        ppo.shape(rollout, torch.zeros(16))
        ppo.estimate(rollout)
        ppo.accumulate(rollout, list(range(16)), rollout.logprobs)
    assert waits.found == []


def test_checking_a_scored_rollout_is_one_reading(tmp_path):
    ppo = run(tmp_path)
    rollout = estimated(ppo)
    with Waits() as waits:
        check_scored(rollout, first=True, exact=True, dtype=torch.float32)
    assert waits.found == ["tolist in ppo_metrics.py:check_scored"]


CALLED: dict = {}  # a function that counts as the project's own
exec(compile("def copied(x): return x.to('cpu')", f"{OURS[0]}/some.py", "exec"), CALLED)

WAITING = [
    (lambda x, mask: x.tolist(), "tolist"), (lambda x, mask: float(x[0]), "__float__"),
    (lambda x, mask: x.sum().item(), "item"), (lambda x, mask: bool(mask[0]), "__bool__"),
    (lambda x, mask: x[mask], "aten::index by a mask"), (lambda x, mask: mask.nonzero(), "aten::nonzero"),
    (lambda x, mask: torch.where(mask), "aten::nonzero"),
    (lambda x, mask: x.masked_select(mask), "aten::masked_select"),
    (lambda x, mask: x.repeat_interleave(mask.long()), "aten::repeat_interleave"), (lambda x, mask: x.cpu(), "cpu"),
    (lambda x, mask: torch.tensor([1], device=x.device), "torch.tensor on a device"),
    (lambda x, mask: torch.equal(x, x), "aten::equal"), (lambda x, mask: CALLED["copied"](x), "to a device"),
]  # fmt: skip


@pytest.mark.parametrize("wait, name", WAITING, ids=[name for _, name in WAITING])
def test_waits_are_seen(wait, name):
    with Waits() as waits:
        wait(torch.ones(3), torch.ones(3) > 0)
    assert [found.partition(" in ")[0] for found in waits.found] == [name]


def test_what_needs_no_value_is_no_wait():
    with Waits() as waits:
        x, rows = torch.ones(3), torch.arange(2)
        x[rows], torch.where(x > 0, x, 0.0), x.repeat_interleave(2), torch.randperm(3).tensor_split(2)[0].tolist()
        x.masked_fill(x > 0, 2.0)
    assert waits.found == []
