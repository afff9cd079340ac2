"""What `ppo_loss` promises, against a float64 loop over slots and against values worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_kernels import ppo_loss

COLUMNS = ("logprobs", "old_logprobs", "advantages", "values", "old_values", "returns")
SETTINGS = {"cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 0.1}


def example(slots=12, *, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    columns = {name: torch.randn(slots, generator=g).to(dtype) for name in COLUMNS}
    columns["logprobs"] = columns["old_logprobs"] + 0.4 * torch.randn(slots, generator=g).to(dtype)
    return columns


def one_slot(**given):
    """One slot at rho 1, advantage 0 and a perfect value, but for what is given."""
    return {name: torch.tensor([float(given.get(name, 0.0))], dtype=torch.float64) for name in COLUMNS}


def loop(c, *, mask, value_mask, cliprange=0.2, cliprange_value=0.2, dual_clip=None, weight=None):
    """Sums over the slots of policy loss, value loss, the clip counts, approximate KL and ratio."""
    sums = dict.fromkeys(("policy_loss", "value_loss", "clipfrac", "value_clipfrac", "approx_kl", "ratio_mean"), 0.0)
    c = {name: column.double().tolist() for name, column in c.items()}
    for i in range(len(c["logprobs"])):
        if mask[i]:
            log_ratio, a = c["logprobs"][i] - c["old_logprobs"][i], c["advantages"][i]
            rho = math.exp(log_ratio)
            first, second = -a * rho, -a * min(max(rho, 1 - cliprange), 1 + cliprange)
            loss = max(first, second)
            if dual_clip is not None and a < 0:
                loss = min(loss, -a * dual_clip)
            sums["policy_loss"] += loss * (1 if weight is None else weight[i].item())
            sums["clipfrac"] += second > first
            sums["approx_kl"] += 0.5 * log_ratio**2
            sums["ratio_mean"] += rho
        if value_mask[i]:
            v, old, target = c["values"][i], c["old_values"][i], c["returns"][i]
            first = second = (v - target) ** 2
            if cliprange_value is not None:
                second = (min(max(v, old - cliprange_value), old + cliprange_value) - target) ** 2
            sums["value_loss"] += 0.5 * max(first, second)
            sums["value_clipfrac"] += second > first
    return sums


@pytest.mark.parametrize("cliprange_value", [0.2, None])
@pytest.mark.parametrize("dual_clip", [None, 1.1])
def test_every_result_matches_the_loop_over_slots(cliprange_value, dual_clip):
    c = example(40)
    c["advantages"][::4] = 0.0
    mask, value_mask = torch.arange(40) % 3 != 0, torch.arange(40) % 5 != 0
    weight = torch.linspace(0.5, 1.5, 40)
    out = ppo_loss(
        **c,
        mask=mask,
        value_mask=value_mask,
        cliprange=0.2,
        cliprange_value=cliprange_value,
        vf_coef=0.3,
        dual_clip=dual_clip,
        weight=weight,
    )
    expected = loop(
        c, mask=mask, value_mask=value_mask, cliprange_value=cliprange_value, dual_clip=dual_clip, weight=weight
    )
    for name, total in expected.items():
        count = value_mask.sum().item() if name.startswith("value") else mask.sum().item()
        assert getattr(out, name).item() == pytest.approx(total / count, abs=1e-6), name
    assert 0 < out.clipfrac < 1
    assert out.loss.item() == pytest.approx(out.policy_loss.item() + 0.3 * out.value_loss.item())


@pytest.mark.parametrize(
    ("rho", "advantage", "loss", "clipped"),
    [(1.5, 1.0, -1.2, 1), (0.5, 1.0, -0.5, 0), (1.5, -1.0, 1.5, 0), (0.5, -1.0, 0.8, 1), (1.1, 2.0, -2.2, 0)],
)
def test_the_pessimistic_side_of_the_clip_counts(rho, advantage, loss, clipped):
    out = ppo_loss(**one_slot(logprobs=math.log(rho), advantages=advantage), **SETTINGS)
    assert out.policy_loss.item() == pytest.approx(loss)
    assert out.clipfrac.item() == clipped
    assert out.ratio_mean.item() == pytest.approx(rho)


@pytest.mark.parametrize(
    ("value", "old_value", "target", "loss", "clipped"),
    [(1.0, 0.0, 2.0, 0.5 * 1.8**2, 1), (1.0, 0.0, 0.0, 0.5, 0), (0.1, 0.0, 2.0, 0.5 * 1.9**2, 0)],
)
def test_the_value_loss_takes_the_worse_of_clipped_and_plain(value, old_value, target, loss, clipped):
    out = ppo_loss(**one_slot(values=value, old_values=old_value, returns=target), **SETTINGS)
    assert out.value_loss.item() == pytest.approx(loss)
    assert out.value_clipfrac.item() == clipped
    assert out.loss.item() == pytest.approx(0.1 * loss)


def test_dual_clip_bounds_the_loss_of_a_bad_action_only():
    bad = ppo_loss(**one_slot(logprobs=math.log(10), advantages=-2.0), dual_clip=3.0, **SETTINGS)
    good = ppo_loss(**one_slot(logprobs=math.log(0.1), advantages=2.0), dual_clip=3.0, **SETTINGS)
    assert bad.policy_loss.item() == pytest.approx(6.0)
    assert good.policy_loss.item() == pytest.approx(-0.2)


def test_the_log_ratio_clamp_bounds_the_ratio_but_not_the_approximate_kl():
    out = ppo_loss(**one_slot(logprobs=50.0, advantages=-1.0), log_ratio_clamp=2.0, **SETTINGS)
    assert out.policy_loss.item() == pytest.approx(math.exp(2))
    assert out.approx_kl.item() == pytest.approx(1250)


def test_at_the_old_policy_the_ratio_is_one_and_the_gradient_is_minus_the_advantage():
    c = example(dtype=torch.float64)
    c["logprobs"] = c["old_logprobs"].clone().requires_grad_()
    out = ppo_loss(**c, **SETTINGS)
    out.loss.backward()
    assert out.ratio_mean == 1 and out.approx_kl == 0 and out.clipfrac == 0
    torch.testing.assert_close(c["logprobs"].grad, -c["advantages"] / 12)


@pytest.mark.parametrize("cliprange_value", [0.2, None])
def test_gradients_pass_gradcheck(cliprange_value):
    c = example(dtype=torch.float64)
    entropy = torch.rand(12, dtype=torch.float64)
    mask, value_mask = torch.arange(12) % 4 != 0, torch.arange(12) % 5 != 0

    def loss(logprobs, values, entropy):
        return ppo_loss(
            **(c | {"logprobs": logprobs, "values": values}),
            mask=mask,
            value_mask=value_mask,
            cliprange=0.2,
            cliprange_value=cliprange_value,
            vf_coef=0.5,
            entropy=entropy,
            entropy_coef=0.01,
            dual_clip=3.0,
            log_ratio_clamp=20.0,
            weight=torch.linspace(0.5, 1.5, 12, dtype=torch.float64),
        ).loss

    inputs = tuple(x.requires_grad_() for x in (c["logprobs"].clone(), c["values"].clone(), entropy))
    assert torch.autograd.gradcheck(loss, inputs)


def test_entropy_is_a_bonus():
    c = one_slot(advantages=1.0)
    entropy = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    out = ppo_loss(**c, entropy=entropy, entropy_coef=0.25, **SETTINGS)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(-1.0 - 0.5) and out.entropy.item() == 2.0
    assert entropy.grad.tolist() == [-0.25]


def test_bug_8_masked_slots_dilute_no_metric():
    """Appending masked slots, whatever they hold, changes nothing."""
    c = example()
    entropy = torch.rand(12)
    plain = ppo_loss(**c, entropy=entropy, **SETTINGS)
    longer = {name: torch.cat([column, torch.full((30,), 17.0)]) for name, column in c.items()}
    mask = torch.arange(42) < 12
    padded = ppo_loss(**longer, entropy=torch.cat([entropy, torch.ones(30)]), mask=mask, **SETTINGS)
    torch.testing.assert_close(padded, plain)


def test_slots_outside_the_masks_may_be_nan_and_get_no_gradient():
    c = example()
    for column in c.values():
        column[3] = math.nan
    c["logprobs"].requires_grad_(), c["values"].requires_grad_()
    entropy = torch.full((12,), math.nan).masked_fill(torch.arange(12) != 3, 1.0).requires_grad_()
    out = ppo_loss(**c, entropy=entropy, entropy_coef=0.1, mask=torch.arange(12) != 3, **SETTINGS)
    out.loss.backward()
    for x in (c["logprobs"], c["values"], entropy):
        assert x.grad.isfinite().all() and x.grad[3] == 0
    assert all(field.isfinite() for field in out)


def test_the_value_mask_defaults_to_the_mask_and_has_its_own_mean():
    c = example()
    mask = torch.arange(12) < 6
    expected = 0.5 * (c["values"] - c["returns"]).square()
    settings = {"cliprange": 0.2, "cliprange_value": None, "vf_coef": 1.0, "mask": mask}
    torch.testing.assert_close(ppo_loss(**c, **settings).value_loss, expected[:6].mean())
    wider = ppo_loss(**c, **settings, value_mask=torch.arange(12) < 9)
    torch.testing.assert_close(wider.value_loss, expected[:9].mean())


@pytest.mark.parametrize("cuts", [[12], [5, 7], [1, 1, 10], [3, 3, 3, 3]])
def test_bug_9_loss_and_gradient_do_not_depend_on_how_a_minibatch_is_cut(cuts):
    c = example(dtype=torch.float64)
    mask, value_mask = torch.arange(12) % 4 != 0, torch.arange(12) % 3 != 0  # 9 and 8 slots

    def run(sizes, **counts):
        c["logprobs"] = c["logprobs"].detach().requires_grad_()
        c["values"] = c["values"].detach().requires_grad_()
        parts = [
            dict(zip(c, columns, strict=True))
            for columns in zip(*(column.split(sizes) for column in c.values()), strict=True)
        ]
        results = []
        for part, m, vm in zip(parts, mask.split(sizes), value_mask.split(sizes), strict=True):
            results.append(ppo_loss(**part, mask=m, value_mask=vm, **counts, **SETTINGS))
            results[-1].loss.backward()
        fields = ("loss", "policy_loss", "value_loss", "clipfrac", "value_clipfrac", "approx_kl", "ratio_mean")
        sums = [sum(getattr(result, name).item() for result in results) for name in fields]
        return sums, c["logprobs"].grad, c["values"].grad

    cut = run(cuts, denominator=mask.sum(), value_denominator=value_mask.sum().item())
    for got, whole in zip(cut, run([12]), strict=True):
        torch.testing.assert_close(got, whole)


def test_bug_7_reordering_all_columns_together_changes_nothing():
    c = example(dtype=torch.float64)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    reordered = {name: column[order] for name, column in c.items()}
    torch.testing.assert_close(ppo_loss(**reordered, **SETTINGS).loss, ppo_loss(**c, **SETTINGS).loss)


@pytest.mark.parametrize("slots", [0, 5])
def test_without_a_valid_slot_everything_is_zero(slots):
    c = example(slots)
    c["logprobs"].requires_grad_()
    out = ppo_loss(**c, mask=torch.zeros(slots, dtype=torch.bool), **SETTINGS)
    out.loss.backward()
    assert out.loss == out.clipfrac == out.ratio_mean == 0
    assert not c["logprobs"].grad.any()


def test_only_the_loss_carries_gradients():
    c = example()
    c["logprobs"].requires_grad_(), c["values"].requires_grad_()
    out = ppo_loss(**c, entropy=torch.rand(12).requires_grad_(), **SETTINGS)
    assert [name for name, field in out._asdict().items() if field.requires_grad] == ["loss"]


def test_without_entropy_none_is_reported():
    assert ppo_loss(**example(), **SETTINGS).entropy is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cliprange": 0.0}, "cliprange is 0.0"),
        ({"cliprange_value": -0.2}, "cliprange_value is -0.2"),
        ({"dual_clip": 1.0}, "dual_clip is 1.0"),
        ({"log_ratio_clamp": 0.0}, "log_ratio_clamp is 0.0"),
        ({"denominator": 0}, "denominator is 0"),
        ({"value_denominator": torch.ones(2)}, "value_denominator has shape"),
        ({"entropy_coef": 0.1}, "entropy is None"),
        ({"returns": torch.zeros(3)}, r"returns has shape \(3,\), expected \(12,\)"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, "mask has shape"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_got(change, message):
    with pytest.raises(ValueError, match=message):
        ppo_loss(**(example() | SETTINGS | change))


def test_bug_5_log_probs_in_bf16_are_refused():
    c = example()
    with pytest.raises(TypeError, match="old_logprobs has dtype"):
        ppo_loss(**(c | {"old_logprobs": c["old_logprobs"].bfloat16()}), **SETTINGS)
