"""`lora_linear` in tile registers, against float64: sums of small integers are exact, and only results are rounded."""

from __future__ import annotations

import pytest
import torch

from rlhf_kernels import lora_linear
from rlhf_kernels.extension import LEVEL
from tests.kernels.by_backend import native

pytestmark = pytest.mark.skipif(LEVEL != "amx", reason="the processor has no tile registers (AMX)")

SCALE = [2.0, 1.0, 0.5, 1.0]
CASES = [  # rows, inputs, outputs, ranks, slots, offsets
    (64, 64, 64, [16], [0], [0, 64]),
    (1, 8, 1, [1], [0], [0, 1]),
    (300, 72, 50, [16], [0], [0, 300]),
    (77, 33, 130, [40], [0], [0, 77]),
    (130, 96, 48, [16, 8, 33, 5], [0, 1, -1, 0, 2, 3], [0, 31, 40, 50, 100, 130, 130]),
    (600, 96, 700, [4], [0], [0, 600]),
]


def integers(*shape: int, most: int, generator: torch.Generator, density: float = 1.0) -> torch.Tensor:
    values = torch.randint(-most, most + 1, shape, generator=generator)
    return (values * (torch.rand(shape, generator=generator) < density)).double()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("rows", "inputs", "outputs", "ranks", "slots", "offsets"), CASES)
def test_forward_and_gradients_are_those_of_float64(rows, inputs, outputs, ranks, slots, offsets, transposed):
    g = torch.Generator().manual_seed(0)
    x, weight = integers(rows, inputs, most=2, generator=g), integers(outputs, inputs, most=1, generator=g)
    bias, dy = integers(outputs, most=3, generator=g), integers(rows, outputs, most=1, generator=g, density=0.2)
    lora_a = [integers(rank, inputs, most=2, generator=g, density=0.2) for rank in ranks]
    lora_b = [integers(outputs, rank, most=1, generator=g, density=0.3) for rank in ranks]
    y, dx = x @ weight.t() + bias, dy @ weight
    da, db = ([torch.zeros_like(t) for t in side] for side in (lora_a, lora_b))
    for slot, first, last in zip(slots, offsets[:-1], offsets[1:], strict=True):
        if slot < 0 or first == last:
            continue
        at, a, b, s = slice(first, last), lora_a[slot], lora_b[slot], SCALE[slot]
        inner, d_inner = x[at] @ a.t() * s, dy[at] @ b
        assert inner.abs().max() <= 128 and d_inner.abs().max() <= 256  # exact in bf16
        y[at] += inner @ b.t()
        dx[at] += d_inner @ a * s
        da[slot] += s * d_inner.t() @ x[at]
        db[slot] += dy[at].t() @ inner

    leaf = x.bfloat16().requires_grad_()
    factors = [[t.float().requires_grad_() for t in side] for side in (lora_a, lora_b)]
    given = weight.bfloat16().t().contiguous().t() if transposed else weight.bfloat16()
    found = lora_linear(leaf, given, *factors, SCALE[: len(ranks)], slots, offsets, bias=bias.bfloat16())
    found.backward(dy.bfloat16())
    assert torch.equal(found.detach(), y.bfloat16()) and torch.equal(leaf.grad, dx.bfloat16())
    for side, expected in zip(factors, (da, db), strict=True):
        for factor, gradient in zip(side, expected, strict=True):
            if gradient.any():
                assert torch.equal(factor.grad, gradient.float())


def test_what_it_cannot_take_runs_elsewhere():
    x, weight, a, b = torch.ones(2, 4), torch.ones(3, 4), torch.ones(1, 4), torch.ones(3, 1)
    arguments = {"x": x.bfloat16(), "weight": weight.bfloat16(), "lora_a": [a], "lora_b": [b]}

    def refusal(op="lora_linear", **change):
        return native.refusal(op, **arguments | change)

    assert refusal() is None and refusal("lora_linear_backward") is None
    assert "float32 adapters" in refusal(lora_a=[a.double()])
    assert "bfloat16 tensors on a processor with AMX" in refusal(x=x)
    assert "strides" in refusal(weight=torch.ones(3, 8).bfloat16()[:, ::2])
    assert "frozen" in refusal("lora_linear_backward", weight_gradient=True)
