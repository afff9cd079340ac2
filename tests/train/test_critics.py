"""The three critics of PPO: what each reads, trains and costs, and that each learns to predict the return."""

from __future__ import annotations

import pytest
import torch

from rlhf_fast.model.packed import Packed
from rlhf_fast.model.roles import PolicyHeadCritic, ReferenceCritic, running_mean
from rlhf_fast.model.shared import ScalarHead
from rlhf_fast.runtime.errors import UsageError
from tests.model_cases import tiny_model
from tests.train.cases import estimated, ppo_config, run

HIDDEN = tiny_model().config.hidden_size
CRITICS = {
    "adapter": lambda: None,
    "policy_head": lambda: PolicyHeadCritic(ScalarHead(HIDDEN)),
    "reference_mlp": lambda: ReferenceCritic(HIDDEN),
}


def ppo_with(tmp_path, critic: str, **options):
    torch.manual_seed(0)
    return run(tmp_path, critic=CRITICS[critic](), **options)


def explained_variance(ppo, rollout) -> float:
    """Of the returns of a rollout by the critic as it is now."""
    rollout.values.zero_()
    kept = rollout.returns.clone()
    ppo.score(rollout)
    return float(1 - (kept - rollout.values).var() / kept.var())


@pytest.mark.parametrize("critic", CRITICS)
def test_it_learns_to_predict_the_return(tmp_path, critic):
    ppo = ppo_with(tmp_path, critic, vf_coef=1.0, num_ppo_epochs=40, kl_coef=0.0, cliprange_value=10.0)
    rollout = estimated(ppo)
    assert abs(explained_variance(ppo, rollout)) < 1e-6  # it starts at 0 everywhere
    ppo.update(rollout)
    ppo.iteration = 1  # the policy is no longer the reference
    assert explained_variance(ppo, rollout) > 0.5


@pytest.mark.parametrize("critic", CRITICS)
def test_values_at_scoring_are_those_of_the_first_update(tmp_path, critic):
    ppo = ppo_with(tmp_path, critic)
    ppo.step()
    rollout = estimated(ppo)
    (loss,) = ppo.accumulate(rollout, list(range(16)), rollout.logprobs)
    error = rollout.values - rollout.returns
    assert float(loss.value_loss) == pytest.approx(float(0.5 * error.square().mean()), rel=1e-4)
    assert float(loss.value_loss) > 0


def test_the_critics_beside_the_adapter_run_no_forward_of_their_own(tmp_path, monkeypatch):
    forwards = {}
    for critic in CRITICS:
        ppo = ppo_with(tmp_path, critic)
        rollout = estimated(ppo)
        calls = []
        model = ppo.policy.model
        monkeypatch.setattr(model, "_forward", lambda *a, f=model._forward, calls=calls: calls.append(1) or f(*a))
        ppo.score(rollout)
        ppo.update(rollout)
        forwards[critic] = len(calls)
    epochs = ppo_config(tmp_path).num_ppo_epochs
    assert forwards == {"adapter": 3 + 2 * epochs, "policy_head": 2 + epochs, "reference_mlp": 2 + epochs}


def test_only_the_policy_head_sends_the_value_loss_into_the_policy(tmp_path):
    for critic in CRITICS:
        ppo = ppo_with(tmp_path, critic, vf_coef=1.0)
        ppo.step()  # so that no head is zero
        rollout = estimated(ppo)
        rollout.advantages.zero_()  # no policy loss
        ppo.accumulate(rollout, list(range(16)), rollout.logprobs)
        reached = any(p.grad is not None and p.grad.abs().max() > 0 for _, p in ppo.policy.named_parameters())
        assert reached == (critic == "policy_head"), critic
        assert all(p.grad is not None for _, p in ppo.critic.named_parameters())


def test_bootstrapping_needs_the_adapter(tmp_path):
    with pytest.raises(
        UsageError, match="bootstrap_truncated=True cannot be used: expected false unless critic=adapter"
    ):
        ppo_config(tmp_path, critic="policy_head", bootstrap_truncated=True)


def test_a_running_mean_starts_anew_with_each_sequence():
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0], [8.0, 4.0], [5.0, 5.0]])
    expected = [[1.0, 2.0], [2.0, 4.0], [4.0, 4.0], [5.0, 5.0]]
    assert running_mean(x, torch.tensor([0, 0, 0, 2])).tolist() == expected
    assert running_mean(x[:0], torch.tensor([], dtype=torch.int64)).shape == (0, 2)


def test_rows_know_their_sequence():
    packed = Packed.from_sequences([[7, 8, 9], [5, 6], [4, 4, 4, 4]], [[-100, 8, 9], [-100, 6], [-100, -100, 4, -100]])
    assert packed.rows.tolist() == [0, 1, 3, 6]
    assert packed.sequence_of_rows().tolist() == [0, 0, 1, 2]
