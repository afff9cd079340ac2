"""Policy and reference in one pass by Triton, against the definitions in float64."""

from __future__ import annotations

import pytest
import torch

import rlhf_kernels
from tests.kernels.by_backend import triton as backend
from tests.kernels.triton.logprob_checks import CASES, assert_as_accurate_as_torch, in_dtype, on


@pytest.fixture(autouse=True)
def chunks_of_two_rows(monkeypatch):
    monkeypatch.setattr("rlhf_kernels.logprobs.chunked.chunk_rows", lambda *_: 2)


def with_reference(given, distance, *, own_weight):
    g = torch.Generator().manual_seed(5)
    hidden, weight = given["hidden"], given["weight"]
    ref_hidden = (hidden.float() + distance * torch.randn(hidden.shape, generator=g)).to(hidden.dtype)
    ref_weight = (weight.float() * 1.01).to(weight.dtype) if own_weight else None
    return given | {"ref_hidden": ref_hidden, "ref_weight": ref_weight}


def by_torch(given, dtype):
    args = in_dtype(dtype, given)
    positional = [args.pop(k) for k in ("hidden", "ref_hidden", "weight", "labels")]
    return rlhf_kernels.policy_reference_logprobs(*positional, **args, exact_kl=True, backend="reference")


@pytest.mark.parametrize("own_weight", [False, True])
@pytest.mark.parametrize("name", [n for n in CASES if n != "banned tokens"])
def test_both_log_probs_and_exact_kl(name, own_weight, device):
    given = with_reference(CASES[name], 0.1, own_weight=own_weight)
    args = on(device, given)
    assert backend.refusal("policy_reference_logprobs", **args) is None
    ours = backend.policy_reference_logprobs(**args, exact_kl=True)
    for key, result, exact, plain in zip(
        ("logprobs", "ref_logprobs", "kl"),
        ours,
        by_torch(given, torch.float64),
        by_torch(given, torch.float32),
        strict=True,
    ):
        assert result.dtype == torch.float32 and not result.cpu()[given["labels"] < 0].any()
        spacing = 2.5e-4 if name == "huge logits" else 1e-6  # of float32 logits near 4000, where a row has that
        assert_as_accurate_as_torch(key, result, exact, plain, absolute=2 * spacing)


@pytest.mark.parametrize("name", [*CASES])
def test_the_kl_of_a_model_from_itself_is_exactly_zero(name, device):
    given = CASES[name]
    args = on(device, given | {"ref_hidden": given["hidden"], "ref_weight": None})
    logprobs, ref_logprobs, kl = backend.policy_reference_logprobs(**args, exact_kl=True)
    if name != "banned tokens":  # -inf - -inf, as in the reference
        assert not kl.any()
    assert torch.equal(logprobs, ref_logprobs)
    assert backend.policy_reference_logprobs(**args, exact_kl=False)[2].shape == (0,)
