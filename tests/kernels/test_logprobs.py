"""What `linear_logprobs` promises, against float64 computed row by row."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rlhf_kernels import linear_logprobs, policy_reference_logprobs
from rlhf_kernels.logprobs import reference
from tests.kernels.by_backend import arguments
from tests.kernels.float64_logprobs import example, log_softmax_rows


@pytest.mark.parametrize("vocabulary", [1, 2, 31, 64, 257])
@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.7}, {"softcap": 3.0}, {"temperature": 1.3, "softcap": 5.0}],
    ids=["plain", "temperature", "softcap", "both"],
)
def test_logprobs_and_entropy_match_float64_for_any_vocabulary(vocabulary, settings):
    hidden, weight, labels = example(vocabulary=vocabulary)
    bias = torch.linspace(-1, 1, vocabulary)
    out = linear_logprobs(hidden, weight, labels, bias=bias, entropy=True, **settings)
    expected = log_softmax_rows(hidden, weight, bias=bias, **settings)
    assert out.logprobs.dtype == torch.float32
    np.testing.assert_allclose(out.logprobs, expected[range(7), labels], atol=5e-6)
    np.testing.assert_allclose(out.entropy, -(np.exp(expected) * expected).sum(1), atol=5e-6)


def test_two_equal_logits_give_log_half_and_entropy_log_two():
    out = linear_logprobs(torch.ones(1, 1), torch.full((2, 1), 3.0), torch.tensor([1]), entropy=True)
    assert out.logprobs.item() == pytest.approx(-math.log(2), abs=1e-7)
    assert out.entropy.item() == pytest.approx(math.log(2), abs=1e-7)


def test_temperature_divides_after_the_softcap():
    """Logits 2 and 0, capped at 1 and divided by 0.5: log-prob -log(1 + exp(-2 tanh 2))."""
    out = linear_logprobs(
        torch.ones(1, 1), torch.tensor([[2.0], [0.0]]), torch.tensor([0]), temperature=0.5, softcap=1.0
    )
    assert out.logprobs.item() == pytest.approx(-math.log1p(math.exp(-2 * math.tanh(2))), abs=1e-7)


@pytest.mark.parametrize("rows", [0, 1])
def test_no_row_and_one_row_work_forward_and_backward(rows):
    hidden, weight, labels = example(rows=rows)
    hidden.requires_grad_()
    out = linear_logprobs(hidden, weight, labels, entropy=True)
    (out.logprobs.sum() + out.entropy.sum()).backward()
    assert out.logprobs.shape == out.entropy.shape == (rows,)
    assert hidden.grad.shape == hidden.shape


def test_all_labels_skipped_give_zeros_and_zero_gradients():
    hidden, weight, _ = example()
    hidden.requires_grad_(), weight.requires_grad_()
    out = linear_logprobs(hidden, weight, torch.full((7,), -100), entropy=True)
    (out.logprobs.sum() + out.entropy.sum()).backward()
    assert out.logprobs.tolist() == out.entropy.tolist() == [0.0] * 7
    assert not hidden.grad.any() and not weight.grad.any()


def test_skipped_rows_get_zero_no_gradient_and_never_reach_the_projection():
    hidden, weight, labels = example()
    hidden[2] = math.nan
    hidden.requires_grad_(), weight.requires_grad_()
    labels[2] = -100
    out = linear_logprobs(hidden, weight, labels, entropy=True)
    (out.logprobs.sum() + out.entropy.sum()).backward()
    expected = log_softmax_rows(hidden[[0, 1, 3, 4, 5, 6]], weight)
    np.testing.assert_allclose(
        out.logprobs[[0, 1, 3, 4, 5, 6]].detach(), expected[range(6), labels[[0, 1, 3, 4, 5, 6]]], atol=5e-6
    )
    assert out.logprobs[2] == out.entropy[2] == 0
    assert not hidden.grad[2].any() and weight.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bug_5_logits_of_half_precision_operands_stay_in_float32(dtype):
    """Logits near 40 rounded to bf16 would be off by up to 0.125; accumulated in float32 the error is near 1e-6."""
    hidden, weight, labels = example(hidden_size=256, vocabulary=300, dtype=dtype)
    hidden = hidden * 2
    out = linear_logprobs(hidden, weight, labels, entropy=True)
    expected = log_softmax_rows(hidden, weight)
    assert out.logprobs.dtype == out.entropy.dtype == torch.float32
    np.testing.assert_allclose(out.logprobs, expected[range(7), labels], atol=1e-4)
    both = policy_reference_logprobs(hidden, hidden, weight, labels)
    np.testing.assert_allclose(both.ref_logprobs, expected[range(7), labels], atol=1e-4)


def test_bug_5_autocast_does_not_lower_the_precision():
    hidden, weight, labels = example(hidden_size=256)
    plain = linear_logprobs(hidden, weight, labels).logprobs
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear_logprobs(hidden, weight, labels).logprobs, plain)


def test_bug_13_all_negative_logits_need_no_positive_maximum():
    """Every logit is near -500: a running maximum that starts at 0 would give exp(-500) = 0 and log 0."""
    hidden, weight, labels = example()
    bias = torch.full((37,), -500.0)
    out = linear_logprobs(hidden, weight, labels, bias=bias)
    np.testing.assert_allclose(out.logprobs, log_softmax_rows(hidden, weight)[range(7), labels], atol=2e-4)


def test_bug_13_a_vocabulary_tail_adds_nothing():
    """37 logits of -123 give -log 37; a tail counted as exp(0) would give -123 or worse."""
    out = linear_logprobs(torch.ones(1, 1), torch.full((37, 1), -123.0), torch.tensor([36]))
    assert out.logprobs.item() == pytest.approx(-math.log(37), abs=1e-5)


def test_huge_logits_give_finite_results_and_gradients():
    hidden, weight, labels = example()
    hidden = (hidden * 1e6).requires_grad_()
    out = linear_logprobs(hidden, weight, labels, entropy=True)
    (out.logprobs.sum() + out.entropy.sum()).backward()
    assert out.logprobs.isfinite().all() and out.entropy.isfinite().all() and hidden.grad.isfinite().all()
    assert (out.logprobs <= 0).all() and (out.entropy >= 0).all()


def test_bug_14_the_softcap_never_touches_absent_logits():
    """With cap 1 a masked entry capped afterwards would weigh exp(-1): here only three real logits exist."""
    out = linear_logprobs(torch.ones(1, 1), torch.full((3, 1), -1e4), torch.tensor([0]), softcap=1.0)
    assert out.logprobs.item() == pytest.approx(-math.log(3), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bug_15_the_gradient_is_accurate_where_p_is_close_to_one(dtype):
    """Logits 7 and 0: d logprob / d logit_0 = 1 - p = 9.1e-4, which p - 1 in bf16 would round to 0 or 3.9e-3."""
    hidden = torch.ones(1, 1, dtype=dtype, requires_grad=True)
    weight = torch.tensor([[7.0], [0.0]], dtype=dtype)
    linear_logprobs(hidden, weight, torch.tensor([0])).logprobs.sum().backward()
    one_minus_p = 1 / (1 + math.exp(7))
    assert hidden.grad.item() == pytest.approx(7 * one_minus_p, rel=1e-4 if dtype == torch.float32 else 2**-8)


def test_bug_16_each_rows_own_gradient_enters_before_the_sum_over_rows():
    """Upstream gradients differ by row, so scaling the summed weight gradient cannot be right."""
    hidden, weight, labels = example(dtype=torch.float64)
    weight.requires_grad_()
    upstream = torch.linspace(-2, 3, 7, dtype=torch.float64)
    linear_logprobs(hidden, weight, labels).logprobs.backward(upstream)
    p = np.exp(log_softmax_rows(hidden, weight))
    expected = np.zeros(weight.shape)
    for n in range(7):
        row = -p[n]
        row[labels[n]] += 1
        expected += upstream[n].item() * np.outer(row, hidden[n].numpy())
    np.testing.assert_allclose(weight.grad, expected, atol=1e-12)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradients_of_logprobs_and_entropy_pass_gradcheck(softcap):
    hidden, weight, labels = example(rows=5, hidden_size=3, vocabulary=6, dtype=torch.float64)
    labels[1] = -100
    bias = torch.linspace(-1, 1, 6, dtype=torch.float64)
    inputs = tuple(x.requires_grad_() for x in (hidden, weight, bias))

    def both(h, w, b):
        return tuple(linear_logprobs(h, w, labels, bias=b, temperature=0.8, softcap=softcap, entropy=True))

    assert torch.autograd.gradcheck(both, inputs)


@pytest.mark.parametrize("chunk_rows", [1, 3, 7, 100])
def test_the_chunk_size_changes_neither_results_nor_gradients(chunk_rows):
    hidden, weight, labels = example(dtype=torch.float64)
    inputs = {"hidden": hidden, "weight": weight, "labels": labels, "bias": None, "temperature": 1.0, "softcap": None}

    def run(rows):
        forward = arguments("linear_logprobs", **inputs, entropy=True, directions=True)
        out = reference.linear_logprobs(forward, chunk_rows=rows)
        results = dict(zip(("logprobs", "entropy", "statistics"), out[:3], strict=True))
        upstream = {"d_logprobs": out[0], "d_entropy": out[1] + 1, "weight_gradient": True, "bias_gradient": True}
        backward = arguments("linear_logprobs_backward", **inputs, **results, **upstream)
        return *out, *reference.linear_logprobs_backward(backward, chunk_rows=rows)

    for got, expected in zip(run(chunk_rows), run(256), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_bug_21_no_logits_outlive_the_forward():
    """What autograd keeps for the backward pass is the inputs, never a tensor with N rows of V logits or a chunk's."""
    hidden, weight, labels = example(rows=40, hidden_size=4, vocabulary=1000)
    hidden.requires_grad_()
    kept = []

    def pack(x):
        kept.append(x.shape)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        linear_logprobs(hidden, weight, labels, entropy=True)
    assert all(shape[-1:] != (1000,) for shape in kept)


def test_bug_17_rows_beyond_two_to_the_31_logits_are_addressed_right():
    """Row 69999 of 70000 x 40000 starts at logit 2.8e9; only the last rows are scored, so the test stays small."""
    hidden = torch.zeros(70_000, 1)
    hidden[-2:] = torch.tensor([[1.0], [-2.0]])
    labels = torch.full((70_000,), -100)
    labels[-2:] = torch.tensor([39_999, 3])
    weight = torch.linspace(-1, 1, 40_000)[:, None]
    out = linear_logprobs(hidden, weight, labels)
    expected = log_softmax_rows(hidden[-2:], weight)
    np.testing.assert_allclose(out.logprobs[-2:], [expected[0, 39_999], expected[1, 3]], atol=5e-6)
    assert not out.logprobs[:-2].any()


def test_non_contiguous_inputs_give_the_same_result():
    hidden, weight, labels = example()
    strided = torch.stack([labels, labels], 1)[:, 0]
    out = linear_logprobs(hidden.t().contiguous().t(), weight.t().contiguous().t(), strided)
    torch.testing.assert_close(out.logprobs, linear_logprobs(hidden, weight, labels).logprobs)


def test_a_frozen_weight_gets_no_gradient():
    hidden, weight, labels = example()
    linear_logprobs(hidden.requires_grad_(), weight, labels).logprobs.sum().backward()
    assert weight.grad is None and hidden.grad is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(2, 3, 4)}, r"hidden has shape \(2, 3, 4\)"),
        ({"hidden": torch.zeros(2, 5)}, "flatten them to rows"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels has shape \(3,\), expected \(2,\)"),
        ({"labels": torch.tensor([0, 6])}, r"labels run from 0 to 6.*\[0, 6\)"),
        ({"labels": torch.tensor([-1, 0])}, "labels run from -1"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"softcap": -1.0}, "softcap is -1.0"),
        ({"bias": torch.zeros(5)}, "bias has shape"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_got(change, message):
    given = {"hidden": torch.zeros(2, 4), "weight": torch.zeros(6, 4), "labels": torch.zeros(2, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        linear_logprobs(**(given | change))


def test_labels_of_another_integer_type_are_refused():
    with pytest.raises(TypeError, match="labels have dtype"):
        linear_logprobs(torch.zeros(2, 4), torch.zeros(6, 4), torch.zeros(2, dtype=torch.int32))
