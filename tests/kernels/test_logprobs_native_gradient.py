"""The gradient that the native log-probs give where it is hard: cancellation, certainty, maxima that keep growing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rlhf_kernels import extension
from tests.kernels.by_backend import native
from tests.kernels.logprob_cases import (
    LEVELS,
    assert_as_accurate_as_torch,
    case,
    each_dtype,
    each_level,
    each_way,
    exact,
    in_forward,
    needs_native,
)

pytestmark = needs_native


@pytest.fixture(autouse=True)
def forced_level(request, monkeypatch):
    if "level" in request.fixturenames:
        monkeypatch.setattr(extension, "LEVEL", request.getfixturevalue("level"))


@each_way
@each_level
@each_dtype
def test_bug_15_the_gradient_is_accurate_where_p_is_close_to_one(run, level, dtype):
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
    assert run(certain).d_hidden.item() == expected


def with_likely_token(dtype, token, label, p):
    """Rows whose probability of `token` is near p: its bias is log(p / (1 - p)) above the log-sum of the others."""
    given = case(19, 64, 700, dtype, scale=1.0, bias=0.0)
    bias = torch.zeros(700)
    bias[token] = math.log(p / (1 - p)) + math.log(699) + 0.5  # E e^z is e^0.5 for z of variance 1
    given.settings["bias"] = bias
    return given._replace(labels=torch.full((19,), label), d_logprobs=torch.ones(19)).without_d_entropy()


@each_level
@each_dtype
@pytest.mark.parametrize("p", [0.999, 1 - 1e-6, 1 - 1e-12])
def test_bug_15_directions_keep_their_relative_accuracy_where_the_label_is_certain(level, dtype, p):
    given = with_likely_token(dtype, token=300, label=300, p=p)
    expected = exact(given).d_hidden
    error = np.linalg.norm(in_forward(given).d_hidden - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < (3e-4 if dtype == torch.bfloat16 else 5e-6)  # plain torch: 0.5 and 1 for the last two


@each_way
@each_level
@each_dtype
@pytest.mark.parametrize("p", [0.999, 1 - 1e-6])
def test_bug_15_nor_is_another_token_rounded_that_is_certain(run, level, dtype, p):
    given = with_likely_token(dtype, token=300, label=5, p=p)
    expected = exact(given).d_hidden
    rounding = 2**-8 if dtype == torch.bfloat16 and run is not in_forward else 2e-5  # of d_hidden itself
    assert np.linalg.norm(run(given).d_hidden - expected) < rounding * np.linalg.norm(expected)


@each_way
@each_level
@pytest.mark.parametrize("d_entropy", [0.0, 1.0])
def test_bug_15_nor_is_any_other_large_probability(run, level, d_entropy):
    """All weights share a large part, whose gradient cancels: the entries of dz sum to 0, unless they are rounded."""
    shared = case(8, 64, 500, torch.bfloat16, scale=0.1)
    weight = (shared.weight.float() + 8).bfloat16()
    weight[3:6] += 0.125  # three likely tokens, none of them a label
    shared = shared._replace(hidden=shared.hidden.abs(), weight=weight, labels=torch.full((8,), 7))
    shared = shared._replace(d_logprobs=torch.ones(8), d_entropy=torch.full((8,), d_entropy))
    assert_as_accurate_as_torch(shared, run, absolute=1e-3)


@each_level
@each_dtype
@pytest.mark.parametrize("slope", [-60.0, 60.0], ids=["falling", "growing"])
def test_a_maximum_that_grows_with_every_block_rescales_what_was_summed(level, dtype, slope):
    given = case(30, 48, 2000, dtype, scale=1.0, bias=0.0)
    given.settings["bias"] += torch.linspace(0, slope, 2000)
    given.labels[:10] = 1999  # the largest logit, or the smallest
    assert_as_accurate_as_torch(given, in_forward)


@each_level
@each_dtype
@pytest.mark.parametrize("directions", [False, True])
def test_statistics_are_the_largest_logit_and_the_log_of_the_sum_relative_to_it(level, dtype, directions):
    given = case(21, 40, 900, dtype, skipped=3, temperature=0.7)
    weight, hidden = given.weight.double().numpy(), given.hidden.double().numpy()
    z = hidden[3:] @ weight.T / 0.7
    statistics = native.linear_logprobs(**given.arguments(), entropy=False, directions=directions)[2].numpy()
    np.testing.assert_allclose(statistics[0, 3:], z.max(1), rtol=1e-6)
    np.testing.assert_allclose(statistics[1, 3:], np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)), atol=6e-6)
    assert not statistics[:, :3].any()


@each_level
@each_dtype
def test_directions_change_neither_the_log_probs_nor_the_entropy(level, dtype):
    given = case(60, 40, 5000, dtype, skipped=3)
    alone = native.linear_logprobs(**given.arguments(), entropy=True, directions=False)
    beside = native.linear_logprobs(**given.arguments(), entropy=True, directions=True)
    assert alone[3].shape == (0, 40) and beside[3].shape == (60, 40) and beside[3].dtype == torch.float32
    for a, b in zip(alone[:3], beside[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=3e-6)


@pytest.mark.skipif(len(LEVELS) < 2, reason="this processor has a single instruction set to choose from")
@each_way
@each_dtype
def test_all_instruction_sets_agree(run, dtype, monkeypatch):
    given = case(70, 90, 1500, dtype, skipped=9, bias=0.5, softcap=10.0, temperature=0.9)
    results = []
    for level in LEVELS:
        monkeypatch.setattr(extension, "LEVEL", level)
        results.append(run(given))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            rounded = a.ndim == 2 and dtype == torch.bfloat16
            assert np.linalg.norm(a - b) <= (2**-8 if rounded else 1e-6) * np.linalg.norm(b)
