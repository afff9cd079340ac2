"""The native log-probs at every instruction set, against float64: as accurate as plain torch, on hard inputs too."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rlhf_kernels import extension
from tests.kernels.by_backend import native
from tests.kernels.logprob_cases import (
    assert_as_accurate_as_torch,
    case,
    each_dtype,
    each_level,
    each_way,
    exact,
    in_forward,
    log_softmax,
    needs_native,
)

pytestmark = needs_native

SHAPES = [  # rows, hidden size, vocabulary: around the sizes of tiles, panels, blocks and ranges
    (1, 1, 1),
    (1, 64, 5),
    (3, 2, 2),
    (7, 31, 129),
    (16, 32, 64),
    (17, 33, 1031),
    (49, 130, 640),
    (65, 577, 515),
    (40, 1310, 530),
    (97, 100, 3001),
]
SETTINGS = {
    "plain": {},
    "softcap": {"softcap": 4.0},
    "all": {"temperature": 1.3, "softcap": 6.0, "bias": -2.0},
}


@pytest.fixture(autouse=True)
def forced_level(request, monkeypatch):
    if "level" in request.fixturenames:
        monkeypatch.setattr(extension, "LEVEL", request.getfixturevalue("level"))


@each_way
@each_level
@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_results_and_gradients_are_as_accurate_as_torchs(run, level, dtype, shape, settings):
    assert_as_accurate_as_torch(case(*shape, dtype, skipped=shape[0] // 5, **settings), run)


@each_way
@each_level
@each_dtype
def test_rows_that_are_all_skipped_or_absent_give_zeros(run, level, dtype):
    for empty in (case(0, 40, 70, dtype), case(5, 40, 70, dtype, skipped=5)):
        results = run(empty)
        assert results.d_hidden.shape == empty.hidden.shape and not any(part.any() for part in results)


@each_way
@each_level
@each_dtype
@pytest.mark.parametrize("scale", [1e3, 1e5], ids="scale {:g}".format)
def test_huge_logits_stay_finite_and_as_accurate_as_torchs(run, level, dtype, scale):
    huge = case(33, 64, 300, dtype, scale=scale)
    assert all(np.isfinite(part).all() for part in run(huge))
    assert_as_accurate_as_torch(huge, run)


@each_way
@each_level
@each_dtype
def test_bug_13_all_negative_logits_need_no_positive_maximum(run, level, dtype):
    assert_as_accurate_as_torch(case(20, 64, 1500, dtype, bias=-500.0), run)


@each_way
@each_level
def test_bug_13_a_vocabulary_tail_adds_nothing(run, level):
    """V logits of -123 give -log V for every V around the tile; a tail counted as exp(0) would give -123."""
    for vocabulary in (1, 7, 9, 127, 130, 513):
        flat = case(1, 1, vocabulary, torch.float32)._replace(
            hidden=torch.ones(1, 1),
            weight=torch.full((vocabulary, 1), -123.0),
            labels=torch.tensor([vocabulary - 1]),
        )
        assert run(flat).logprobs.item() == pytest.approx(-math.log(vocabulary), abs=1e-6)
        assert run(flat).entropy.item() == pytest.approx(math.log(vocabulary), abs=1e-6)


@each_way
@each_level
@each_dtype
def test_tokens_masked_by_a_bias_of_minus_infinity_have_no_weight(run, level, dtype):
    masked = case(9, 32, 700, dtype, bias=0.0)
    masked = masked.without_d_entropy() if run is in_forward else masked
    masked.settings["bias"][:600] = -math.inf  # more than the first block, whose maximum is then -inf
    masked.labels.fill_(650)
    allowed = masked._replace(weight=masked.weight[600:], labels=masked.labels - 600)
    allowed = allowed._replace(settings={"bias": masked.settings["bias"][600:]})
    for got, expected in zip(run(masked), exact(allowed), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=2e-3)


@each_way
@each_level
@each_dtype
def test_under_a_softcap_a_bias_of_minus_infinity_is_the_lowest_logit_and_no_mask(run, level, dtype):
    lowest = case(9, 32, 300, dtype, bias=0.0, softcap=0.5, temperature=1.3)
    lowest.settings["bias"][100:] = -math.inf
    lowest.labels[:4] = 50  # some labels with a finite bias, some without
    assert_as_accurate_as_torch(lowest, run)


@each_level
@each_dtype
@pytest.mark.parametrize("own_weight", [False, True], ids=["shared weight", "own weight"])
def test_policy_and_reference_with_their_exact_kl(level, dtype, own_weight):
    settings = {"temperature": 0.8, "softcap": 9.0}
    policy, ref = case(50, 72, 1300, dtype, skipped=6, **settings), case(50, 72, 1300, dtype, seed=1, **settings)
    ref = ref._replace(labels=policy.labels, weight=ref.weight if own_weight else policy.weight)
    arguments = policy.arguments() | {"ref_hidden": ref.hidden, "ref_weight": ref.weight if own_weight else None}
    logprobs, ref_logprobs, kl = native.policy_reference_logprobs(**arguments, exact_kl=True)
    np.testing.assert_allclose(logprobs, exact(policy).logprobs, atol=5e-6)
    np.testing.assert_allclose(ref_logprobs, exact(ref).logprobs, atol=5e-6)
    log_p, log_r = (log_softmax(model, model.hidden, torch.float64) for model in (policy, ref))
    expected = (log_p.exp() * (log_p - log_r)).sum(1) * (policy.labels >= 0)
    np.testing.assert_allclose(kl, expected, atol=2e-5)
    without = native.policy_reference_logprobs(**arguments, exact_kl=False)
    assert torch.equal(without[0], logprobs) and torch.equal(without[1], ref_logprobs) and without[2].shape == (0,)
