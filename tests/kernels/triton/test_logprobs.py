"""Log-probs by Triton, forward and backward, against the definitions in float64."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.by_backend import triton as backend
from tests.kernels.triton.logprob_checks import (
    CASES,
    assert_as_accurate_as_torch,
    assert_rows_close,
    by_torch,
    case,
    check_backward,
    check_banned_tokens,
    check_forward,
    gradients_from_above,
    on,
)

# The reference's entropy is 0 * -inf at a token that cannot come; ours leaves such a token out.
each_case = pytest.mark.parametrize("name", [n for n in CASES if n != "banned tokens"])


@pytest.fixture(autouse=True)
def chunks_of_two_rows(monkeypatch):
    monkeypatch.setattr("rlhf_kernels.logprobs.chunked.chunk_rows", lambda *_: 2)


@each_case
def test_forward(name, device):
    assert backend.refusal("linear_logprobs", **on(device, CASES[name])) is None
    check_forward(backend, name, device)


@each_case
def test_backward(name, device):
    check_backward(backend, name, device)


@pytest.mark.parametrize("only", ["d_logprobs", "d_entropy"])
def test_a_gradient_that_is_none_counts_as_zero_and_nothing_else_is_computed(only, device):
    given = case(bias=True)
    above = gradients_from_above(given)
    above[int(only == "d_logprobs")] = 0
    args = on(device, given)
    logprobs, entropy, statistics, directions = backend.linear_logprobs(**args, entropy=True, directions=False)
    assert directions.numel() == 0
    without = backend.linear_logprobs(**args, entropy=False, directions=False)
    assert without[1].shape == (0,)
    d_hidden, d_weight, d_bias = backend.linear_logprobs_backward(
        **args,
        logprobs=logprobs,
        entropy=without[1] if only == "d_logprobs" else entropy,
        statistics=statistics,
        d_logprobs=above[0].to(device) if only == "d_logprobs" else None,
        d_entropy=above[1].to(device) if only == "d_entropy" else None,
        weight_gradient=False,
        bias_gradient=False,
    )
    assert d_weight.shape == d_bias.shape == (0,)
    exact, plain = by_torch(given, torch.float64, *above)[3], by_torch(given, torch.float32, *above)[3]
    assert_as_accurate_as_torch("gradient of hidden", d_hidden, exact, plain, 1e-5)


def test_a_token_that_cannot_come_takes_no_part(device):
    check_banned_tokens(backend, device)


def test_the_certain_label_keeps_its_digits(device):
    """log p between -1e-5 and -1e-7, to 1 in a thousand: the log of a sum that was rounded near 1 is off by 6e-8."""
    given = CASES["certain"]
    args, ones = on(device, given), torch.ones(len(given["labels"]))
    logprobs, entropy, statistics, _ = backend.linear_logprobs(**args, entropy=False, directions=False)
    d_hidden, *_ = backend.linear_logprobs_backward(
        **args,
        logprobs=logprobs,
        entropy=entropy,
        statistics=statistics,
        d_logprobs=ones.to(device),
        d_entropy=None,
        weight_gradient=False,
        bias_gradient=False,
    )
    exact, _, directions, *_ = by_torch(given, torch.float64, ones, ones)
    assert_rows_close("gradient of hidden", d_hidden, directions, torch.float32)
    scored = given["labels"] >= 0
    assert (exact[scored] > -1e-5).all() and (exact[scored] < -1e-7).all()
    torch.testing.assert_close(logprobs.cpu().double(), exact, rtol=1e-3, atol=0)
