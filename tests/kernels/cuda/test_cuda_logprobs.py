"""Log-probs by CUDA C++, forward and backward, against the definitions in float64."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.by_backend import ByBackend
from tests.kernels.triton.logprob_checks import (
    CASES,
    case,
    check_backward,
    check_banned_tokens,
    check_forward,
    on,
)

backend = ByBackend("cuda")
each_case = pytest.mark.parametrize("name", [n for n in CASES if n != "banned tokens"])


@pytest.fixture(autouse=True)
def chunks_of_two_rows(monkeypatch):
    monkeypatch.setattr("rlhf_kernels.logprobs.chunked.chunk_rows", lambda *_: 2)


@each_case
def test_forward(name, device):
    check_forward(backend, name, device)


@each_case
def test_backward(name, device):
    check_backward(backend, name, device)


def test_by_hand(device):
    """Logits 0 and log 3: probabilities 1/4 and 3/4, entropy log 4 - 3/4 log 3; d log p_0 / dh = 3/4 (W_0 - W_1)."""
    weight = torch.tensor([[0.0], [1.0]], device=device)
    hidden, labels = torch.tensor([[3.0]], device=device).log(), torch.tensor([0], device=device)
    args = {"hidden": hidden, "weight": weight, "labels": labels, "temperature": 1.0}
    logprobs, entropy, statistics, directions = backend.linear_logprobs(**args, entropy=True, directions=True)
    found = [float(logprobs), float(entropy), *statistics.flatten().tolist(), float(directions)]
    assert found == pytest.approx([-1.386294, 0.562335, 1.098612, 0.287682, -0.75], abs=1e-6)


def test_a_token_that_cannot_come_takes_no_part(device):
    check_banned_tokens(backend, device)


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
