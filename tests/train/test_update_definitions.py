"""One minibatch against the formulas in float64, slot by slot, each sequence computed alone."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_fast.rollout.rollout import COLUMNS
from rlhf_fast.train import ppo_metrics
from tests.train.cases import estimated, run

CLIP, VALUE_CLIP, TEMPERATURE = 0.1, 0.05, 0.7


def expected(ppo, rollout, micro: list[list[int]], *, token_mean: bool) -> dict[str, float]:
    """Loss and metrics of a minibatch of `micro` groups of sequences, by loops over response slots only.

    token_mean: over all of them; else the mean of the groups' means.
    """
    cu, c = rollout.cu_responses.tolist(), {k: getattr(rollout, k).double().tolist() for k in COLUMNS}
    groups = []
    for sequences in micro:
        sums = dict.fromkeys(("policy_loss", "value_loss", "entropy", "clipfrac", "approx_kl", "ratio_mean"), 0.0)
        actions = slots = 0
        for b in sequences:
            logprobs, values = forward(ppo, rollout, b)
            for t in range(cu[b], cu[b + 1]):
                row, label = t - cu[b], int(rollout.labels[t])
                value, old, target = values[row], c["values"][t], c["returns"][t]
                near = min(max(value, old - VALUE_CLIP), old + VALUE_CLIP)
                sums["value_loss"] += 0.5 * max((value - target) ** 2, (near - target) ** 2)
                slots += 1
                if label == -100:
                    continue
                actions += 1
                rho, advantage = math.exp(logprobs[row, label] - c["logprobs"][t]), c["advantages"][t]
                clipped = min(max(rho, 1 - CLIP), 1 + CLIP)
                sums["policy_loss"] += max(-advantage * rho, -advantage * clipped)
                sums["clipfrac"] += -advantage * clipped > -advantage * rho
                sums["approx_kl"] += 0.5 * math.log(rho) ** 2
                sums["ratio_mean"] += rho
                sums["entropy"] += float(-(logprobs[row].exp() * logprobs[row]).sum())
        groups.append((sums, actions, slots))
    out = {}
    for key in groups[0][0]:
        counts = [slots if key == "value_loss" else actions for _, actions, slots in groups]
        if token_mean:
            out[key] = sum(sums[key] for sums, _, _ in groups) / sum(counts)
        else:
            out[key] = sum(sums[key] / n for (sums, _, _), n in zip(groups, counts, strict=True)) / len(groups)
    return out | {"loss": out["policy_loss"] + 0.1 * out["value_loss"]}


@torch.no_grad()
def forward(ppo, rollout, b):
    """(slots, V) log-probs in float64 and the values of one sequence, computed alone."""
    shared = ppo.policy.model
    tokens = torch.tensor(rollout.sequences()[b])
    first = int(rollout.prompt_lengths[b]) - 1
    rows = slice(first, first + int(rollout.cu_responses.diff()[b]))
    hidden = shared.hidden(tokens, [0, len(tokens)], "policy")[rows].double()
    logprobs = (hidden @ shared.lm_head[0].double().t() / TEMPERATURE).log_softmax(-1)
    return logprobs, ppo.critic.head(shared.hidden(tokens, [0, len(tokens)], "critic")[rows]).tolist()


@pytest.mark.parametrize("loss_mean", ["token", "micro"])
@pytest.mark.parametrize("score_at", ["eos", "eos+1"])
def test_loss_and_metrics_of_a_minibatch_follow_the_definitions(tmp_path, score_at, loss_mean):
    ppo = run(
        tmp_path, score_at=score_at, loss_mean=loss_mean, cliprange=CLIP, cliprange_value=VALUE_CLIP,
        temperature=TEMPERATURE, max_tokens_per_micro_batch=40, vf_coef=0.1, num_ppo_epochs=1,
        per_device_train_batch_size=4, gradient_accumulation_steps=4,
    )  # fmt: skip
    rollout = estimated(ppo)
    assert (rollout.labels == -100).any() == (score_at == "eos+1")
    ppo.update(rollout)  # so that ratio, values and clip fractions are not trivial
    losses = ppo.accumulate(rollout, list(range(16)), rollout.logprobs)
    got, beside = ppo_metrics.read_back(losses, [torch.tensor(7.0)])
    assert beside == [7.0]
    assert len(losses) > 4  # micro-batches are cut by tokens as well, which changes nothing
    micro = [list(range(start, start + 4)) for start in range(0, 16, 4)]
    wanted = expected(ppo, rollout, micro, token_mean=loss_mean == "token")
    assert 0 < wanted["clipfrac"] < 1 and wanted["approx_kl"] > 1e-4
    for name, value in wanted.items():
        assert got[name] == pytest.approx(value, rel=2e-4, abs=1e-6), name


def test_the_gradient_is_that_of_sequences_in_any_order(tmp_path):
    ppo = run(tmp_path, max_tokens_per_micro_batch=40)
    rollout = estimated(ppo)
    gradients = []
    for order in (list(range(16)), list(reversed(range(16)))):
        ppo.optimiser.adamw.zero_grad()
        ppo.accumulate(rollout, order, rollout.logprobs)
        gradients.append([p.grad.clone() for p in ppo.optimiser.parameters if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_the_update_ends_after_the_step_that_passes_target_kl(tmp_path):
    assert len(run_update(tmp_path, target_kl=None)) == 8
    steps = run_update(tmp_path, target_kl=1e-4)
    assert 1 < len(steps) < 8
    assert steps[-1]["approx_kl"] > 1e-4 >= max(step["approx_kl"] for step in steps[:-1])


def run_update(tmp_path, target_kl):
    ppo = run(tmp_path, num_ppo_epochs=4, num_mini_batches=2, target_kl=target_kl, learning_rate=3e-4)
    return ppo.update(estimated(ppo))


def test_the_bootstrap_is_the_value_of_the_state_after_the_last_token_of_truncated_responses_only(tmp_path):
    ppo = run(tmp_path, bootstrap_truncated=True, gamma=0.9, lam=0.8, kl_coef=0.0)
    ppo.step()  # a critic that has learnt something
    rollout = estimated(ppo)
    assert rollout.truncated.any() and rollout.finished.any()
    last = (rollout.cu_responses[1:] - 1).long()
    with torch.no_grad():
        after = torch.stack([ppo.critic.head(ppo.policy.model.hidden(torch.tensor(s), [0, len(s)], "critic")[-1])
                             for s in rollout.sequences()])  # fmt: skip
    beyond = torch.where(rollout.truncated, after, 0.0)
    assert beyond.abs().max() > 1e-3
    # A_last + V_last = r_last + gamma V_beyond
    torch.testing.assert_close(rollout.returns[last], rollout.rewards[last] + 0.9 * beyond, atol=1e-5, rtol=1e-4)
