"""Log-probs by CUDA C++, forward and backward, against the definitions in float64."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.by_backend import ByBackend
from tests.kernels.triton.logprob_checks import (
    CASES,
    assert_as_accurate_as_torch,
    assert_rows_close,
    by_torch,
    case,
    on,
)

backend = ByBackend("cuda")
each_case = pytest.mark.parametrize("name", [n for n in CASES if n != "banned tokens"])


@pytest.fixture(autouse=True)
def chunks_of_two_rows(monkeypatch):
    monkeypatch.setattr("rlhf_kernels.logprobs.chunked.chunk_rows", lambda *_: 2)


def gradients_from_above(given):
    return torch.randn(2, given["hidden"].shape[0], generator=torch.Generator().manual_seed(9))


@each_case
def test_forward(name, device):
    given = CASES[name]
    args = on(device, given)
    logprobs, entropy, statistics, directions = backend.linear_logprobs(**args, entropy=True, directions=True)
    above = gradients_from_above(given)
    exact, plain = by_torch(given, torch.float64, *above), by_torch(given, torch.float32, *above)
    assert {x.dtype for x in (logprobs, entropy, statistics, directions)} == {torch.float32}
    assert_as_accurate_as_torch("logprobs", logprobs, exact[0], plain[0])
    assert_as_accurate_as_torch("entropy", entropy, exact[1], plain[1])
    skipped = given["labels"] < 0
    for result in (logprobs, entropy, directions, *statistics):
        assert not result.cpu()[skipped].any()
    if name != "huge logits":  # there p itself is as uncertain as float32 logits near 1000 are
        assert_rows_close("directions", directions, exact[2], given["hidden"].dtype)


@each_case
def test_backward(name, device):
    given = CASES[name]
    args, above = on(device, given), gradients_from_above(given)
    logprobs, entropy, statistics, _ = backend.linear_logprobs(**args, entropy=True, directions=False)
    gradients = backend.linear_logprobs_backward(
        **args, logprobs=logprobs, entropy=entropy, statistics=statistics,
        d_logprobs=above[0].to(device), d_entropy=above[1].to(device),
        weight_gradient=True, bias_gradient=given["bias"] is not None,
    )  # fmt: skip
    exact, plain = by_torch(given, torch.float64, *above)[3:], by_torch(given, torch.float32, *above)[3:]
    for key, ours, truth, torchs in zip(("hidden", "weight", "bias"), gradients, exact, plain, strict=False):
        assert ours.dtype == given[key].dtype and ours.shape == truth.shape
        half = given["hidden"].dtype != torch.float32
        scale = float(truth.abs().max()) if truth.numel() else 0.0
        # in half precision the gradient of each logit is rounded before the product, in which such terms cancel
        absolute = scale * (2**-6 if half else 4e-6) + (3e-6 if name == "fp16" else 0)
        assert_as_accurate_as_torch(f"gradient of {key}", ours, truth, torchs, absolute)


def test_by_hand(device):
    """Logits 0 and log 3: probabilities 1/4 and 3/4, entropy log 4 - 3/4 log 3; d log p_0 / dh = 3/4 (W_0 - W_1)."""
    weight = torch.tensor([[0.0], [1.0]], device=device)
    hidden, labels = torch.tensor([[3.0]], device=device).log(), torch.tensor([0], device=device)
    args = {"hidden": hidden, "weight": weight, "labels": labels, "temperature": 1.0}
    logprobs, entropy, statistics, directions = backend.linear_logprobs(**args, entropy=True, directions=True)
    found = [float(logprobs), float(entropy), *statistics.flatten().tolist(), float(directions)]
    assert found == pytest.approx([-1.386294, 0.562335, 1.098612, 0.287682, -0.75], abs=1e-6)


def test_a_token_that_cannot_come_takes_no_part(device):
    """Half of the vocabulary has a bias of -inf: everything is as with the other half alone."""
    args = on(device, CASES["banned tokens"])
    half = args | {"bias": None, "weight": args["weight"][::2].contiguous()}
    half["labels"] = torch.where(args["labels"] < 0, -100, args["labels"] // 2)
    found, expected = (backend.linear_logprobs(**given, entropy=True, directions=True) for given in (args, half))
    for ours, other in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-5)


def test_a_label_that_cannot_come_has_log_prob_minus_infinity_and_the_entropy_of_the_others(device):
    args = on(device, CASES["banned tokens"])
    args["labels"] = args["labels"] + (args["labels"] >= 0)  # to odd tokens, which are banned
    banned = backend.linear_logprobs(**args, entropy=True, directions=False)
    other = backend.linear_logprobs(**on(device, CASES["banned tokens"]), entropy=True, directions=False)
    scored = args["labels"] >= 0
    assert (banned[0][scored] == -torch.inf).all()
    torch.testing.assert_close(banned[1], other[1], rtol=1e-5, atol=1e-6)


def test_a_nan_makes_its_own_row_nan_and_no_other(device):
    args = on(device, case())
    args["hidden"] = args["hidden"].clone()
    args["hidden"][1, 0] = torch.nan
    logprobs, entropy, _, directions = backend.linear_logprobs(**args, entropy=True, directions=True)
    for result in (logprobs, entropy, directions.sum(1)):
        assert result.isnan().tolist() == [False, True, False, False, False, False]


def test_rows_that_are_counted_by_the_caller_give_the_same(device):
    for labels in (torch.tensor([-100, 4, -100, 0, 9, -100]), torch.tensor([1, 2, 3, 4, 5, 6])):
        args = on(device, case(vocabulary=50) | {"labels": labels})
        expected = backend.linear_logprobs(**args, entropy=True, directions=True)
        found = backend.linear_logprobs(**args, entropy=True, directions=True, scored=int((labels >= 0).sum()))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
