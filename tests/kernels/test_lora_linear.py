"""What `lora_linear` promises, against a float64 loop over rows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf_kernels import lora_linear
from tests.kernels.by_backend import reference

K, N = 5, 4
SCALE = [0.5, 2.0]


def example(rows=6, *, dtype=torch.float64, seed=0):
    """x, weight, and two adapters of ranks 2 and 3."""
    g = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(rows, K, generator=g), torch.randn(N, K, generator=g)
    lora_a = [torch.randn(rank, K, generator=g) for rank in (2, 3)]
    lora_b = [torch.randn(N, rank, generator=g) for rank in (2, 3)]
    return x.to(dtype), weight.to(dtype), [a.to(dtype) for a in lora_a], [b.to(dtype) for b in lora_b]


def loop(x, weight, lora_a, lora_b, slots, offsets, bias=None):
    """Each row by itself in float64, through the merged weight W + s B A."""
    rows = []
    for slot, start, stop in zip(slots, offsets[:-1], offsets[1:], strict=True):
        merged = weight.double().numpy()
        if slot >= 0:
            merged = merged + SCALE[slot] * (lora_b[slot].double().numpy() @ lora_a[slot].double().numpy())
        rows += [merged @ row + (0 if bias is None else bias.numpy()) for row in x[start:stop].double().numpy()]
    return np.array(rows).reshape(len(x), N)


GROUPS = [
    ([0], [0, 6]),
    ([1], [0, 6]),
    ([-1], [0, 6]),
    ([0, 1], [0, 2, 6]),
    ([1, -1, 0, 1], [0, 1, 3, 3, 6]),
    ([0, -1], [0, 0, 6]),
    ([0, 0], [0, 5, 6]),
]


@pytest.mark.parametrize(("slots", "offsets"), GROUPS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_each_row_sees_its_own_adapter(slots, offsets, with_bias):
    x, weight, lora_a, lora_b = example()
    bias = torch.arange(4.0, dtype=torch.float64) if with_bias else None
    y = lora_linear(x, weight, lora_a, lora_b, SCALE, slots, offsets, bias=bias)
    np.testing.assert_allclose(y, loop(x, weight, lora_a, lora_b, slots, offsets, bias), atol=1e-12)


@pytest.mark.parametrize(("slots", "offsets"), GROUPS)
def test_gradients_pass_gradcheck(slots, offsets):
    x, weight, lora_a, lora_b = example()
    bias = torch.zeros(N, dtype=torch.float64)
    inputs = tuple(tensor.requires_grad_() for tensor in (x, weight, bias, *lora_a, *lora_b))

    def run(x, weight, bias, a0, a1, b0, b1):
        return lora_linear(x, weight, [a0, a1], [b0, b1], SCALE, slots, offsets, bias=bias)

    assert torch.autograd.gradcheck(run, inputs)


def test_stacked_adapters_and_tensor_arguments_equal_the_lists():
    x, weight, lora_a, lora_b = example()
    lora_a[1], lora_b[1] = lora_a[1][:2], lora_b[1][:, :2]
    expected = lora_linear(x, weight, lora_a, lora_b, SCALE, [1, 0], [0, 4, 6])
    y = lora_linear(
        x,
        weight,
        torch.stack(lora_a),
        torch.stack(lora_b),
        torch.tensor(SCALE),
        torch.tensor([1, 0]),
        torch.tensor([0, 4, 6]),
    )
    torch.testing.assert_close(y, expected)


def test_bf16_rows_train_float32_adapters():
    """Results within twice the error of plain bf16 products; gradients arrive in float32."""
    x, weight, lora_a, lora_b = example(rows=64)
    x, weight = x.bfloat16(), weight.bfloat16()
    lora_a, lora_b = ([t.float().requires_grad_() for t in side] for side in (lora_a, lora_b))
    y = lora_linear(x, weight, lora_a, lora_b, SCALE, [0, 1], [0, 30, 64])
    y.float().sum().backward()
    exact = loop(x, weight, [a.detach() for a in lora_a], [b.detach() for b in lora_b], [0, 1], [0, 30, 64])
    plain = [
        F.linear(x[rows], weight) + SCALE[s] * F.linear(F.linear(x[rows], a.bfloat16()), b.bfloat16())
        for s, (rows, a, b) in enumerate(zip((slice(0, 30), slice(30, 64)), lora_a, lora_b, strict=True))
    ]
    error, plain_error = (np.abs(t.detach().double().numpy() - exact).max() for t in (y, torch.cat(plain)))
    assert y.dtype == torch.bfloat16 and error <= 2 * plain_error
    assert all(t.grad.dtype == torch.float32 and t.grad.any() for t in (*lora_a, *lora_b))


def test_an_adapter_that_serves_no_row_gets_no_gradient():
    x, weight, lora_a, lora_b = example()
    for tensor in (*lora_a, *lora_b):
        tensor.requires_grad_()
    lora_linear(x, weight, lora_a, lora_b, SCALE, [1, -1], [0, 3, 6]).sum().backward()
    assert lora_a[0].grad is None and lora_b[0].grad is None
    assert lora_a[1].grad.any() and lora_b[1].grad.any()


@pytest.mark.parametrize("frozen", ["x", "adapters"])
def test_what_is_frozen_costs_no_product(frozen):
    x, weight, lora_a, lora_b = example()
    for tensor in [x] if frozen == "adapters" else [*lora_a, *lora_b]:
        tensor.requires_grad_()
    y = lora_linear(x, weight, lora_a, lora_b, SCALE, [0], [0, 6])
    with Operations() as backward:
        y.sum().backward()
    assert "lora_linear_backward" in backward.names
    assert (x.grad is None) == (frozen == "x") and (lora_a[0].grad is None) == (frozen == "adapters")


def test_groups_that_share_an_adapter_add_their_gradients():
    x, weight, lora_a, lora_b = example()
    found = []
    for slots, offsets in (([0], [0, 6]), ([0, -1, 0], [0, 2, 2, 6])):
        a, b = (side[0].clone().requires_grad_() for side in (lora_a, lora_b))
        lora_linear(x, weight, [a], [b], SCALE[:1], slots, offsets).square().sum().backward()
        found.append([a.grad, b.grad])
    torch.testing.assert_close(found[0], found[1])


def test_a_transposed_weight_is_used_as_it_is():
    """GPT-2's Conv1D stores (K, N)."""
    x, weight, lora_a, lora_b = example()
    y = lora_linear(x, weight.t().contiguous().t(), lora_a, lora_b, SCALE, [0], [0, 6])
    torch.testing.assert_close(y, lora_linear(x, weight, lora_a, lora_b, SCALE, [0], [0, 6]))


def test_no_rows_at_all():
    x, weight, lora_a, lora_b = example(rows=0)
    assert lora_linear(x, weight, lora_a, lora_b, SCALE, [], [0]).shape == (0, N)
    assert lora_linear(x, weight, lora_a, lora_b, SCALE, [0, 1], [0, 0, 0]).shape == (0, N)


class Operations(TorchDispatchMode):
    """Records the names of the operations that run inside."""

    def __enter__(self):
        self.names = []
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.__name__.split(".")[0])
        return function(*args, **(kwargs or {}))


def test_without_an_adapter_it_costs_one_product_and_with_one_no_concatenation():
    x, weight, lora_a, lora_b = example()
    with Operations() as linear:
        F.linear(x, weight)
    with Operations() as bare:
        lora_linear(x, weight, lora_a, lora_b, SCALE, [-1], [0, 6])
    with Operations() as single:
        lora_linear(x, weight, lora_a, lora_b, SCALE, [1], [0, 6])
    arguments = {"lora_a": lora_a, "lora_b": lora_b, "scale": SCALE}
    with Operations() as inside:
        reference.lora_linear(x=x, weight=weight, bias=None, **arguments, slots=[0, 1, -1], rows=[0, 6, 0])
    assert bare.names == linear.names
    assert single.names == ["lora_linear"]
    assert "cat" not in inside.names and [inside.names.count(name) for name in ("mm", "addmm_")] == [2, 1]


FREE = {"new_empty", "empty_like", "as_strided", "t"}  # memory and views: no launch on a GPU


def test_one_adapter_for_all_rows_takes_5_launches_forward_and_7_backward():
    x, weight, lora_a, lora_b = example(dtype=torch.bfloat16)
    arguments = {"x": x, "weight": weight, "scale": SCALE[:1], "slots": [0], "rows": [6]}
    arguments |= {"lora_a": [lora_a[0].float()], "lora_b": [lora_b[0].float()]}
    with Operations() as forward:
        y, inner, factors = reference.lora_linear(bias=None, **arguments)
    wanted = {"x_gradient": True, "weight_gradient": False, "bias_gradient": False, "adapter_gradients": True}
    with Operations() as backward:
        reference.lora_linear_backward(inner=inner, factors=factors, dy=y, **arguments, **wanted)
    launches = [[name for name in run.names if name not in FREE] for run in (forward, backward)]
    assert launches[0] == ["mul", "copy_", "mm", "mm", "addmm_"]
    assert launches[1] == ["mm", "mm", "addmm_", "addmm_", "_to_copy", "mm", "copy_"]


@pytest.mark.parametrize(("slots", "offsets"), GROUPS)
def test_nothing_is_read_before_it_is_written(slots, offsets):
    """Memory that is not written yet holds NaN here."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        x, weight, lora_a, lora_b = example()
        for tensor in (x, *lora_a, *lora_b):
            tensor.requires_grad_()
        y = lora_linear(x, weight, lora_a, lora_b, SCALE, slots, offsets)
        y.square().sum().backward()
        given = {"x": x, "weight": weight, "lora_a": lora_a, "lora_b": lora_b, "scale": SCALE, "bias": None}
        rows = [stop - start for start, stop in pairwise(offsets)]
        with torch.no_grad():
            _, inner, cast = reference.lora_linear(**given, slots=slots, rows=rows)
    finally:
        torch.use_deterministic_algorithms(before)
    arguments = [tensor.detach() for tensor in (x, weight)]
    factors = [[tensor.detach() for tensor in side] for side in (lora_a, lora_b)]
    np.testing.assert_allclose(y.detach(), loop(*arguments, *factors, slots, offsets), atol=1e-12)
    assert all(t.grad is None or t.grad.isfinite().all() for t in (x, *lora_a, *lora_b))
    assert x.grad.any() and inner.isfinite().all() and cast.isfinite().all()


def test_rows_and_weights_of_different_dtypes_are_refused():
    x, weight, lora_a, lora_b = example()
    with pytest.raises(TypeError, match=r"got x torch\.float32, weight torch\.float64, expected one dtype"):
        lora_linear(x.float(), weight, lora_a, lora_b, SCALE, [0], [0, 6])
    with pytest.raises(TypeError, match=r"bias torch\.float32, expected one dtype"):
        lora_linear(x, weight, lora_a, lora_b, SCALE, [0], [0, 6], bias=torch.zeros(N))


@pytest.mark.parametrize(
    ("slots", "offsets", "message"),
    [
        ([0], [0, 5], r"row_offsets is \[0, 5\] for 1 slots, expected 2 offsets from 0 to 6"),
        ([0], [1, 6], "row_offsets"),
        ([0, 1], [0, 6], "expected 3 offsets"),
        ([0, 1, 0], [0, 4, 2, 6], "never fall"),
        ([2], [0, 6], "slots holds 2"),
        ([-2], [0, 6], "slots holds -2"),
    ],
)
def test_groups_that_do_not_fit_are_refused(slots, offsets, message):
    with pytest.raises(ValueError, match=message):
        lora_linear(*example(), SCALE, slots, offsets)


def test_adapters_that_do_not_fit_are_refused():
    x, weight, lora_a, lora_b = example()
    with pytest.raises(ValueError, match=r"lora_b\[0\] has shape \(4, 3\), expected \(4, 2\)"):
        lora_linear(x, weight, lora_a, lora_b[::-1], SCALE, [0], [0, 6])
    with pytest.raises(ValueError, match="got 2 A, 2 B and 1 scales"):
        lora_linear(x, weight, lora_a, lora_b, [1.0], [0], [0, 6])
    with pytest.raises(ValueError, match="flatten the leading dimensions"):
        lora_linear(x[None], weight, lora_a, lora_b, SCALE, [0], [0, 1])
