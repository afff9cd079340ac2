"""RMS norm, rotary embedding and SwiGLU by Triton, results and gradients, against float64 formulas."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from rlhf_kernels import rms_norm, rotary, swiglu
from rlhf_kernels.triton_support import Variant
from tests.kernels.test_layer_ops import assert_as_exact, draw, outputs_and_gradients, plain_norm, plain_rotary
from tests.model.test_fused_blocks import results, with_adapters

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def on(device: str, tensors: list[Tensor]) -> list[Tensor]:
    """With the strides that they have."""
    if device == "cpu":
        return tensors
    return [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device).copy_(x) for x in tensors]


def assert_agrees(run, formula, inputs: list[Tensor], device: str) -> None:
    """`run` by Triton, with gradients of all inputs, beside the formula in float64 and in the inputs' dtype."""
    exact = outputs_and_gradients(formula, [x.double() for x in inputs])
    plain = outputs_and_gradients(formula, inputs)
    ours = outputs_and_gradients(run, on(device, inputs))
    assert [x.dtype for x in ours] == [x.dtype for x in plain]
    assert_rounded([x.cpu() for x in ours], plain, exact, device)


def assert_rounded(ours: list[Tensor], plain: list[Tensor], exact: list[Tensor], device: str) -> None:
    """The interpreter cuts off what bfloat16 cannot hold, up to one unit in the last place; a card rounds it."""
    cut_off = device == "cpu" and ours[0].dtype == torch.bfloat16
    assert_as_exact(ours, plain, exact, units=1.0 if cut_off else 0.0)


def triton_norm(x: Tensor, weight: Tensor) -> Tensor:
    return rms_norm(x, weight, eps=1e-6, backend="triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(7, 37), (1, 128), (3, 5, 64), (33, 1), (5, 200), (2, 2049), (1, 8192)], ids=str)
def test_rms_norm(shape, dtype, device):
    inputs = draw(shape, shape[-1:], dtype=dtype)
    assert_agrees(triton_norm, plain_norm, inputs, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rms_norm_of_the_widest_rows_with_a_frozen_weight(dtype, device):
    width = 8192 if dtype == torch.float32 else 16384
    x, weight = draw((2, width), (width,), dtype=dtype)
    (on_device,) = on(device, [weight])
    exact = outputs_and_gradients(lambda x: plain_norm(x, weight.double()), [x.double()])
    plain = outputs_and_gradients(lambda x: plain_norm(x, weight), [x])
    ours = outputs_and_gradients(lambda x: triton_norm(x, on_device), on(device, [x]))
    assert_rounded([x.cpu() for x in ours], plain, exact, device)


@pytest.mark.parametrize("shape", [(1100, 130), (9000, 3)], ids=str)
def test_more_rows_than_programs_add_up_the_gradient_of_the_weight(shape, device):
    """512 programs of 1 row, or of 16, take up to three blocks each."""
    inputs = draw(shape, shape[-1:], dtype=torch.float32)
    assert_agrees(triton_norm, plain_norm, inputs, device)


def test_rms_norm_by_hand(device):
    """Mean square 12.5 and 0.5; dx = rstd (w dy - n mean(w dy n)), of dy = (1, 0): n = (3, 4) / sqrt 12.5."""
    x = torch.tensor([[3.0, 4.0], [0.0, 1.0]], device=device, requires_grad=True)
    weight = torch.tensor([1.0, 2.0], device=device, requires_grad=True)
    y = rms_norm(x, weight, eps=0.0, backend="triton")
    y[0, 0].backward()
    r, s = 12.5**-0.5, 2**0.5
    torch.testing.assert_close(y.detach().cpu(), torch.tensor([[3 * r, 8 * r], [0.0, 2 * s]]))
    along = 3 * r / 2  # mean(w dy n)
    expected = torch.tensor([[r * (1 - 3 * r * along), r * (-4 * r * along)], [0.0, 0.0]])
    torch.testing.assert_close(x.grad.cpu(), expected)
    torch.testing.assert_close(weight.grad.cpu(), torch.tensor([3 * r, 0.0]))


@pytest.mark.parametrize("layout", ["heads of one product", "rows apart", "entries apart"])
def test_rms_norm_of_views(layout, device):
    (product,) = draw((5, 7 * 16), dtype=torch.float32)
    views = {"heads of one product": product.view(5, 7, 16)[:, 2:5], "rows apart": product[:, 3:36]}
    x = views.get(layout, product.t())
    (weight,) = draw(x.shape[-1:], dtype=torch.float32, seed=1)
    ours, on_device = on(device, [x, weight])
    expected = outputs_and_gradients(lambda x: plain_norm(x, weight), [x])
    y = triton_norm(ours.requires_grad_(), on_device)
    torch.testing.assert_close(y.detach().cpu(), expected[0])
    dy = torch.linspace(-1, 2, y.numel()).view(y.shape[::-1]).permute(*reversed(range(y.dim())))  # strided as well
    (dx,) = torch.autograd.grad(y, ours, dy.to(device))
    (right,) = torch.autograd.grad(plain_norm(x.requires_grad_(), weight), x, dy)
    torch.testing.assert_close(dx.cpu(), right, rtol=1e-5, atol=1e-5)


def angles(tokens: int, half: int, dtype: torch.dtype) -> list[Tensor]:
    """cos and sin (tokens, half), as halves of wider rows: transformers gives the angles of both."""
    turn = torch.linspace(0, 9, tokens * half).view(tokens, half)
    return [torch.cat([x, x], 1).to(dtype)[:, :half] for x in (turn.cos(), turn.sin())]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "head_dim"),
    [(5, 3, 1, 2), (1, 2, 2, 8), (3, 40, 33, 64), (4, 2, 1, 80), (2, 9, 3, 128), (2, 9, 1, 250), (0, 2, 1, 64)],
)
def test_rotary(tokens, heads, kv_heads, head_dim, dtype, device):
    inputs = draw((tokens, heads, head_dim), (tokens, kv_heads, head_dim), dtype=dtype)
    cos, sin = angles(tokens, head_dim // 2, dtype)
    on_device = on(device, [cos, sin])
    if tokens == 0:
        assert [x.shape for x in rotary(*on(device, inputs), *on_device, backend="triton")] == [x.shape for x in inputs]
        return
    assert_agrees(
        lambda q, k: rotary(q, k, *on_device, backend="triton"),
        lambda q, k: plain_rotary(q, k, cos, sin),
        inputs,
        device,
    )


@pytest.mark.parametrize("layout", ["one product", "heads first", "entries apart", "every other key head"])
def test_rotary_of_views(layout, device):
    (product,) = draw((6, (4 + 2 * 2) * 24), dtype=torch.float32)
    if layout == "one product":  # q, k and v side by side
        q, k, _ = (x.unflatten(1, (-1, 24)) for x in product.split([4 * 24, 2 * 24, 2 * 24], 1))
    elif layout == "heads first":  # (heads, T, D), as attention has them
        q, k = (x.transpose(0, 1) for x in product.view(8, 6, 24).split([5, 3]))
    elif layout == "every other key head":
        q, k = product.view(6, 8, 24)[:, :3], product.view(6, 8, 24)[:, 3::2]
    else:
        q, k = (x.transpose(1, 2) for x in product.view(6, 24, 8).split([5, 3], 2))
    assert not q.is_contiguous()
    cos, sin = angles(6, 12, torch.float32)
    expected = plain_rotary(q, k, cos, sin)
    found = rotary(*on(device, [q, k, cos, sin]), backend="triton")
    for ours, right in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), right)
        assert ours.is_contiguous()


def test_rotary_by_hand_turns_a_quarter_and_back(device):
    """cos 0, sin 1: (a, b) -> (-b, a); the gradient of its sum with weights (1, 10) turns back: (10, -1)."""
    q = torch.tensor([[[2.0, 3.0]]], device=device, requires_grad=True)
    quarter = torch.zeros(1, 1, device=device), torch.ones(1, 1, device=device)
    y, _ = rotary(q, q.detach(), *quarter, backend="triton")
    (y * torch.tensor([1.0, 10.0], device=device)).sum().backward()
    assert y.tolist() == [[[-3.0, 2.0]]] and q.grad.tolist() == [[[10.0, -1.0]]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 33), (1, 1), (2, 3, 700), (3, 2048)], ids=str)
def test_swiglu(shape, dtype, device):
    inputs = [5 * x for x in draw(shape, shape, dtype=dtype)]
    assert_agrees(
        lambda g, u: swiglu(g, u, backend="triton"),
        lambda g, u: g / (1 + (-g).exp()) * u if g.dtype == torch.float64 else silu(g) * u,
        inputs,
        device,
    )


def test_swiglu_of_halves_of_one_product(device):
    """Rows of 1100 entries, 2200 apart: two blocks each. The gradient is strided as well."""
    (product, dy) = draw((4, 2200), (1100, 4), dtype=torch.float32)
    gate, up = product[:, :1100], product[:, 1100:]
    ours = [x.requires_grad_() for x in on(device, [gate, up])]
    y = swiglu(*ours, backend="triton")
    exact = [x.double().requires_grad_() for x in (gate, up)]
    right = silu(exact[0]) * exact[1]
    torch.testing.assert_close(y.detach().cpu().double(), right.detach(), rtol=1e-6, atol=1e-6)
    found = torch.autograd.grad(y, ours, dy.t().to(device))
    expected = torch.autograd.grad(right, exact, dy.t().double())
    for ours, right in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu().double(), right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("up", [1.0, 1e4])
def test_swiglu_of_huge_gates(up, dtype, device):
    """Far below, 0 with slope 0; far above, gate with slope 1."""
    largest = 6e4 if dtype == torch.float16 else 3e38
    huge = [-largest, -1e4, -200.0, 0.0, 2.0**6, 2.0**7]
    gate = torch.tensor(huge, dtype=dtype, device=device, requires_grad=True)
    ups = torch.full_like(gate, up, requires_grad=True)
    y = swiglu(gate, ups, backend="triton")
    y.backward(torch.full_like(y, 2.0**-6))
    assert y.float().tolist() == (gate.clamp(min=0) * ups).float().tolist()
    assert gate.grad.float().tolist() == (ups / 2**6 * torch.tensor([0, 0, 0, 0.5, 1, 1]).to(ups)).tolist()
    assert ups.grad.tolist() == [0.0, 0.0, 0.0, 0.0, 1.0, 2.0]


def test_no_rows_at_all(device):
    x = torch.zeros(0, 3, 8, device=device, requires_grad=True)
    weight = torch.ones(8, device=device, requires_grad=True)
    y = rms_norm(swiglu(x, x, backend="triton"), weight, eps=0.1, backend="triton")
    y.sum().backward()
    assert y.shape == x.grad.shape == (0, 3, 8) and weight.grad.tolist() == [0.0] * 8


def test_results_are_the_same_twice(device):
    rows = 700 if device == "cuda" else 40  # the interpreter runs one program after the other
    x, weight = on(device, draw((rows, 130), (130,), dtype=torch.float32))
    first, second = (outputs_and_gradients(triton_norm, [x, weight]) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("op", ["rms_norm", "rotary", "swiglu"])
def test_rows_are_addressed_in_64_bits(op, tmp_path, device):
    """Three rows 2^30 entries apart: the third begins at 2^31. The file has holes where nothing is touched."""
    stride, width = 2**30, 6
    size = 2 * stride + width
    if device == "cpu":
        flat = torch.from_file(str(tmp_path / "rows"), shared=True, size=size, dtype=torch.float32)
    else:
        flat = torch.empty(size, device=device)
    x = flat.as_strided((3, width), (stride, 1))
    x.copy_(draw((3, width), dtype=torch.float32)[0])
    leaf = x.requires_grad_()
    near = x.detach().clone().requires_grad_()
    cos, sin = (t.to(device) for t in angles(3, width // 2, torch.float32))
    run = {
        "rms_norm": lambda x: triton_norm(x, torch.ones(width, device=device)),
        "rotary": lambda x: rotary(x[:, None], x[:, None], cos, sin, backend="triton")[0],
        "swiglu": lambda x: swiglu(x, x, backend="triton"),
    }[op]
    y, expected = run(leaf), run(near)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    up = expected.detach() + 1
    (dx,), (expected_dx,) = (torch.autograd.grad(out, [into], up) for out, into in ((y, leaf), (expected, near)))
    torch.testing.assert_close(dx, expected_dx, rtol=0, atol=0)


def test_every_width_up_to_the_stated_one_has_a_block():
    from rlhf_kernels.rms_norm_triton import BLOCKS, MAX_TRAINED_WIDTH, MAX_WIDTH
    from rlhf_kernels.rotary_triton import HALVES, MAX_HEAD_DIM

    assert list(BLOCKS) == sorted(BLOCKS) and max(BLOCKS) == max(MAX_WIDTH.values()) and MAX_TRAINED_WIDTH in BLOCKS
    assert list(HALVES) == sorted(HALVES) and 2 * max(HALVES) == MAX_HEAD_DIM


@pytest.mark.parametrize(("architecture", "norms"), [("llama", 5), ("qwen3", 9)])
def test_a_model_runs_through_the_kernels(architecture, norms, device, monkeypatch):
    """Two decoder layers with a norm at the end: hidden states and the adapters' gradients are those of the CPU."""
    expected = results(with_adapters(architecture, torch.float32), "a")
    launches, launch = Counter(), Variant.launch
    monkeypatch.setattr(Variant, "launch", lambda self, *a, **k: launches.update([self.name]) or launch(self, *a, **k))
    if device == "cpu":
        monkeypatch.setenv("RLHF_FAST_BACKEND", "triton")
    shared = with_adapters(architecture, torch.float32, device=device)
    for ours, right in zip(results(shared, "a"), expected, strict=True):
        assert (ours.cpu() - right).norm() <= (1e-5 if device == "cpu" else 1e-4) * right.norm()
    forward = {"rms_norm": norms, "rotary": 2, "swiglu": 2}
    assert {name: launches[name] for name in forward} == forward | {"rotary": 4}  # forward and back
    assert launches["rms_norm_backward"] >= norms - 1 and launches["swiglu_backward"] == 2
