"""Sampling by Triton chooses the tokens of the reference, and gives their log-probs."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.by_backend import reference
from tests.kernels.by_backend import triton as backend


def problem(rows, vocabulary, size, dtype=torch.float32):
    g = torch.Generator().manual_seed(rows * vocabulary)
    return {
        "hidden": torch.randn(rows, size, generator=g).to(dtype),
        "weight": torch.randn(vocabulary, size, generator=g).to(dtype),
        "bias": torch.randn(vocabulary, generator=g),
        "seeds": torch.arange(rows) * 977 - 5,
        "steps": torch.arange(rows) * 3,
    }


@pytest.mark.parametrize("temperature, softcap, biased", [(1.0, None, False), (0.7, 2.0, True), (0.0, None, True)])
@pytest.mark.parametrize("rows, vocabulary, size", [(1, 1, 3), (3, 130, 33), (5, 4099, 8)])
def test_draws_are_those_of_the_reference(device, rows, vocabulary, size, temperature, softcap, biased):
    given = problem(rows, vocabulary, size)
    given["bias"] = given["bias"] if biased else None
    args = {k: v if v is None else v.to(device) for k, v in given.items()} | {"softcap": softcap}
    assert backend.refusal("sample", **args) is None
    tokens, logprobs = backend.sample(**args, temperature=temperature)
    exact = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in given.items()}
    expected, expected_logprobs = reference.sample(**exact, softcap=softcap, temperature=temperature)
    assert tokens.tolist() == expected.tolist()
    torch.testing.assert_close(logprobs.cpu(), expected_logprobs.float(), atol=2e-5, rtol=1e-5)


def test_a_draw_does_not_depend_on_the_rows_beside_it(device):
    given = {k: v.to(device) for k, v in problem(7, 3000, 9).items()} | {"softcap": None, "temperature": 1.0}
    whole, _ = backend.sample(**given)
    rows = {k: v[2:4] if k in ("hidden", "seeds", "steps") else v for k, v in given.items()}
    assert backend.sample(**rows)[0].tolist() == whole[2:4].tolist()
    assert len(set(whole.tolist())) > 3


def test_no_rows(device):
    given = {k: v.to(device) for k, v in problem(0, 30, 9).items()}
    tokens, logprobs = backend.sample(**given, softcap=None, temperature=1.0)
    assert tokens.shape == logprobs.shape == (0,)
