"""The native log-probs at every instruction set, against float64: as accurate as plain torch, on hard inputs too."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rlhf_kernels.logprobs import native, reference
from tests.kernels.logprob_cases import (
    LEVELS,
    assert_as_accurate_as_torch,
    case,
    each_dtype,
    each_level,
    exact,
    needs_native,
    run,
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
        monkeypatch.setattr(native, "LEVEL", request.getfixturevalue("level"))


@each_level
@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_results_and_gradients_are_as_accurate_as_torchs(level, dtype, shape, settings):
    assert_as_accurate_as_torch(case(*shape, dtype, skipped=shape[0] // 5, **settings))


@each_level
@each_dtype
def test_rows_that_are_all_skipped_or_absent_give_zeros(level, dtype):
    for empty in (case(0, 40, 70, dtype), case(5, 40, 70, dtype, skipped=5)):
        assert not any(part.any() for part in run(empty, native))


@each_level
@each_dtype
@pytest.mark.parametrize("scale", [1e3, 1e5], ids="scale {:g}".format)
def test_huge_logits_stay_finite_and_as_accurate_as_torchs(level, dtype, scale):
    huge = case(33, 64, 300, dtype, scale=scale)
    assert all(np.isfinite(part).all() for part in run(huge, native))
    assert_as_accurate_as_torch(huge)


@each_level
@each_dtype
def test_bug_13_all_negative_logits_need_no_positive_maximum(level, dtype):
    assert_as_accurate_as_torch(case(20, 64, 1500, dtype, bias=-500.0))


@each_level
def test_bug_13_a_vocabulary_tail_adds_nothing(level):
    """V logits of -123 give -log V for every V around the tile; a tail counted as exp(0) would give -123."""
    for vocabulary in (1, 7, 9, 127, 130, 513):
        out = native.linear_logprobs(
            torch.ones(1, 1),
            torch.full((vocabulary, 1), -123.0),
            torch.tensor([vocabulary - 1]),
            bias=None,
            temperature=1.0,
            softcap=None,
            entropy=True,
        )
        assert out.logprobs.item() == pytest.approx(-math.log(vocabulary), abs=1e-6)
        assert out.entropy.item() == pytest.approx(math.log(vocabulary), abs=1e-6)


@each_level
@each_dtype
def test_tokens_masked_by_a_bias_of_minus_infinity_have_no_weight(level, dtype):
    masked = case(9, 32, 700, dtype, bias=0.0)
    masked.settings["bias"][:600] = -math.inf  # more than the first block, whose maximum is then -inf
    masked.labels.fill_(650)
    allowed = masked._replace(weight=masked.weight[600:], labels=masked.labels - 600)
    allowed = allowed._replace(settings={"bias": masked.settings["bias"][600:]})
    for got, expected in zip(run(masked, native), exact(allowed), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=2e-3)


@each_level
@each_dtype
def test_bug_15_the_gradient_is_accurate_where_p_is_close_to_one(level, dtype):
    """Logits 7 and 0: d logprob / d logit_0 = 1 - p = 9.1e-4, which p - 1 in bf16 would round to 0 or 3.9e-3."""
    certain = case(1, 1, 2, dtype)._replace(
        hidden=torch.ones(1, 1, dtype=dtype),
        weight=torch.tensor([[7.0], [0.0]], dtype=dtype),
        labels=torch.tensor([0]),
        d_logprobs=torch.ones(1),
        d_entropy=torch.zeros(1),
    )
    one_minus_p = 1 / (1 + math.exp(7))
    expected = pytest.approx(7 * one_minus_p, rel=1e-4 if dtype == torch.float32 else 2**-8)
    assert run(certain, native).d_hidden.item() == expected


@each_level
@pytest.mark.parametrize("d_entropy", [0.0, 1.0])
def test_bug_15_nor_is_any_other_large_probability_rounded(level, d_entropy):
    """All weights share a large part, whose gradient cancels: the entries of dz sum to 0, unless they are rounded."""
    shared = case(8, 64, 500, torch.bfloat16, scale=0.1)
    weight = (shared.weight.float() + 8).bfloat16()
    weight[3:6] += 0.125  # three likely tokens, none of them a label
    shared = shared._replace(hidden=shared.hidden.abs(), weight=weight, labels=torch.full((8,), 7))
    shared = shared._replace(d_logprobs=torch.ones(8), d_entropy=torch.full((8,), d_entropy))
    assert_as_accurate_as_torch(shared, absolute=1e-3)


@pytest.mark.skipif(len(LEVELS) < 2, reason="this processor has a single instruction set to choose from")
@each_dtype
def test_all_instruction_sets_agree(dtype, monkeypatch):
    given = case(70, 90, 1500, dtype, skipped=9, bias=0.5, softcap=10.0, temperature=0.9)
    results = []
    for level in LEVELS:
        monkeypatch.setattr(native, "LEVEL", level)
        results.append(run(given, native))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert np.linalg.norm(a - b) <= (
                2**-8 if a.ndim == 2 and dtype == torch.bfloat16 else 1e-6
            ) * np.linalg.norm(b)


@each_level
@each_dtype
@pytest.mark.parametrize("own_weight", [False, True], ids=["shared weight", "own weight"])
def test_policy_and_reference_with_their_exact_kl(level, dtype, own_weight):
    settings = {"temperature": 0.8, "softcap": 9.0}
    policy, ref = case(50, 72, 1300, dtype, skipped=6, **settings), case(50, 72, 1300, dtype, seed=1, **settings)
    ref = ref._replace(labels=policy.labels, weight=ref.weight if own_weight else policy.weight)
    arguments = policy.arguments() | {"ref_weight": ref.weight if own_weight else None, "exact_kl": True}
    out = native.policy_reference_logprobs(policy.hidden, ref.hidden, **arguments)
    plain = reference.policy_reference_logprobs(policy.hidden.double(), ref.hidden.double(), **arguments)
    np.testing.assert_allclose(out.logprobs, exact(policy).logprobs, atol=5e-6)
    np.testing.assert_allclose(out.ref_logprobs, exact(ref).logprobs, atol=5e-6)
    np.testing.assert_allclose(out.kl, plain.kl, atol=2e-5)
