"""What `policy_reference_logprobs` promises, against float64 computed row by row and each model by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlhf_kernels import policy_reference_logprobs
from tests.kernels.float64_logprobs import example, log_softmax_rows

each_backend = pytest.mark.parametrize("backend", ["reference", None])


@each_backend
def test_policy_and_reference_are_scored_as_each_alone(backend):
    hidden, weight, labels = example()
    ref_hidden, ref_weight, _ = example(seed=1)
    labels[4] = -100
    out = policy_reference_logprobs(
        hidden, ref_hidden, weight, labels, ref_weight=ref_weight, temperature=0.9, exact_kl=True, backend=backend
    )
    p = log_softmax_rows(hidden, weight, temperature=0.9)
    r = log_softmax_rows(ref_hidden, ref_weight, temperature=0.9)
    scored = (labels != -100).numpy()
    picked = labels.clamp(min=0)
    np.testing.assert_allclose(out.logprobs, np.where(scored, p[range(7), picked], 0), atol=5e-6)
    np.testing.assert_allclose(out.ref_logprobs, np.where(scored, r[range(7), picked], 0), atol=5e-6)
    np.testing.assert_allclose(out.kl, np.where(scored, (np.exp(p) * (p - r)).sum(1), 0), atol=5e-5)


@each_backend
def test_the_reference_shares_the_policys_weight_unless_it_has_its_own(backend):
    hidden, weight, labels = example()
    ref_hidden, _, _ = example(seed=1)
    out = policy_reference_logprobs(hidden, ref_hidden, weight, labels, backend=backend)
    np.testing.assert_allclose(out.ref_logprobs, log_softmax_rows(ref_hidden, weight)[range(7), labels], atol=5e-6)
    assert out.kl is None


@each_backend
def test_kl_of_equal_models_is_exactly_zero(backend):
    hidden, weight, labels = example()
    out = policy_reference_logprobs(hidden, hidden.clone(), weight, labels, exact_kl=True, backend=backend)
    assert torch.equal(out.logprobs, out.ref_logprobs)
    assert not out.kl.any()


def test_scoring_both_models_records_no_gradient():
    hidden, weight, labels = example()
    out = policy_reference_logprobs(hidden.requires_grad_(), hidden, weight.requires_grad_(), labels)
    assert not out.logprobs.requires_grad and not out.ref_logprobs.requires_grad
