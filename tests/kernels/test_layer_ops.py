"""RMS norm, SwiGLU, rotary embedding and packed attention against float64 formulas, on every instruction set."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rlhf_kernels import decode_attention, extension, packed_attention, rms_norm, rotary, swiglu
from rlhf_kernels.extension import MISSING, native

LEVELS = ["reference"] if MISSING else ["reference", *native.levels()]


@pytest.fixture(params=LEVELS)
def backend(request, monkeypatch) -> str:
    if request.param == "reference":
        return "reference"
    monkeypatch.setattr(extension, "LEVEL", request.param)
    return "native"


def draw(*shapes: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g).to(dtype) for shape in shapes]


def outputs_and_gradients(run, inputs: list[Tensor]) -> list[Tensor]:
    """Outputs of `run` and the gradients of its inputs, for a loss with a different weight on every entry."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = run(*inputs)
    out = [out] if isinstance(out, Tensor) else list(out)
    weights = [torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view(y.shape) for y in out]
    torch.autograd.backward(out, [w.to(y) for w, y in zip(weights, out, strict=True)])
    return [*(y.detach() for y in out), *(x.grad for x in inputs if x.grad is not None)]


def assert_as_exact(got: list[Tensor], plain: list[Tensor], exact: list[Tensor], *, units: float = 0.0) -> None:
    """The error is at most twice that of plain torch at the same dtype, in norm, plus two roundings, and plus `units`
    in the last place of each entry."""
    assert len(got) == len(exact)
    for ours, theirs, right in zip(got, plain, exact, strict=True):
        floor = 2 * torch.finfo(ours.dtype).eps * right.abs().max()
        error, allowed = ((x.double() - right).norm() / math.sqrt(x.numel()) for x in (ours, theirs))
        last_place = torch.finfo(ours.dtype).eps * right.norm() / math.sqrt(right.numel())
        assert error <= 2 * allowed + floor * 0.05 + units * last_place, (float(error), float(allowed))


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt())


def plain_rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    turn = torch.complex(cos.double(), sin.double())[:, None]

    def turned(x: Tensor) -> Tensor:
        low, high = x.double().chunk(2, -1)
        both = torch.complex(low, high) * turn
        return torch.cat([both.real, both.imag], -1).to(x.dtype)

    return turned(q), turned(k)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, offsets: list[int], window: int | None) -> Tensor:
    out = []
    for start, stop in pairwise(offsets):
        distance = torch.arange(stop - start)[:, None] - torch.arange(stop - start)
        mask = (distance >= 0) & (distance < (window or stop + 1))
        groups = q.shape[1] // k.shape[1]
        sides = q[start:stop], k[start:stop].repeat_interleave(groups, 1), v[start:stop].repeat_interleave(groups, 1)
        heads = (x.transpose(0, 1)[None] for x in sides)
        out.append(scaled_dot_product_attention(*heads, attn_mask=mask, scale=0.3)[0].transpose(0, 1))
    return torch.cat(out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7, 37), (3, 2, 64), (4, 3), (2, 576)])
def test_rms_norm(backend, dtype, shape):
    x, weight = draw(shape, shape[-1:], dtype=dtype)
    exact = outputs_and_gradients(lambda x: plain_norm(x, weight.double()), [x.double()])
    plain = outputs_and_gradients(lambda x: plain_norm(x, weight), [x])
    assert_as_exact(outputs_and_gradients(lambda x: rms_norm(x, weight, eps=1e-6, backend=backend), [x]), plain, exact)


def test_rms_norm_by_hand_and_with_a_weight_that_trains(backend):
    x, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0])
    expected = torch.tensor([[3.0, 8.0]]) / math.sqrt(12.5)
    torch.testing.assert_close(rms_norm(x, weight, eps=0.0, backend=backend), expected)
    x64, w64 = (t.double().requires_grad_() for t in draw((5, 6), (6,), dtype=torch.float32))
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, eps=0.1), (x64, w64))


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_the_extension_refuses_a_norm_whose_weight_trains():
    x, weight = (t.requires_grad_() for t in draw((2, 3), (3,), dtype=torch.float32))
    with pytest.raises(ValueError, match="weight needs a gradient"):
        rms_norm(x, weight, eps=0.1, backend="native").sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 33), (3, 1536), (1, 1), (0, 4)])
def test_swiglu(backend, dtype, shape):
    inputs = [5 * x for x in draw(shape, shape, dtype=dtype)]
    exact = outputs_and_gradients(lambda g, u: g / (1 + (-g).exp()) * u, [x.double() for x in inputs])
    plain = outputs_and_gradients(lambda g, u: torch.nn.functional.silu(g) * u, inputs)
    if shape[0]:
        assert_as_exact(outputs_and_gradients(lambda g, u: swiglu(g, u, backend=backend), inputs), plain, exact)
    else:
        assert swiglu(*inputs, backend=backend).shape == shape


def test_swiglu_of_huge_gates_is_finite(backend):
    gate = torch.tensor([-1e30, -200.0, 0.0, 200.0, 1e30], requires_grad=True)
    y = swiglu(gate, torch.ones(5), backend=backend)
    y.sum().backward()
    torch.testing.assert_close(y.detach(), torch.tensor([0.0, 0.0, 0.0, 200.0, 1e30]), atol=1e-4, rtol=1e-6)
    torch.testing.assert_close(gate.grad, torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]), atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("up", [1.0, -1e6, 1e30])
def test_swiglu_far_below_0_is_0_and_so_are_its_gradients(backend, up, dtype):
    """e^-200 is 0 in float: whatever is multiplied with it."""
    gate = torch.tensor([-200.0, -1e4, -1e30, -3e38] * 9, dtype=dtype, requires_grad=True)
    ups = torch.full_like(gate, up, requires_grad=True)
    y = swiglu(gate, ups, backend=backend)
    y.sum().backward()
    for entries in (y, gate.grad, ups.grad):
        assert entries.tolist() == [0.0] * 36


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [2, 8, 64, 80])
def test_rotary(backend, dtype, head_dim):
    q, k = draw((5, 3, head_dim), (5, 1, head_dim), dtype=dtype)
    angles = torch.linspace(0, 9, 5 * head_dim // 2).view(5, -1)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    exact = outputs_and_gradients(lambda q, k: plain_rotary(q, k, cos, sin), [q.double(), k.double()])
    plain = outputs_and_gradients(lambda q, k: plain_rotary(q, k, cos, sin), [q, k])
    assert_as_exact(outputs_and_gradients(lambda q, k: rotary(q, k, cos, sin, backend=backend), [q, k]), plain, exact)


ATTENTION = [  # offsets, heads, kv_heads, head_dim, window
    ([0, 5, 6, 70, 200], 4, 2, 8, None),
    ([0, 130], 9, 3, 64, None),
    ([0, 130, 177], 3, 1, 20, 7),
    ([0, 97, 300], 2, 2, 33, 50),
    ([0, 48, 96, 97], 2, 1, 128, 1),
    ([0, 64, 161], 6, 1, 80, 33),
    ([0, 31, 64, 225], 2, 2, 96, 96),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("offsets", "heads", "kv_heads", "head_dim", "window"), ATTENTION)
def test_packed_attention(backend, dtype, offsets, heads, kv_heads, head_dim, window):
    shapes = [(offsets[-1], count, head_dim) for count in (heads, kv_heads, kv_heads)]
    inputs = draw(*shapes, dtype=dtype)
    exact = outputs_and_gradients(lambda *x: plain_attention(*x, offsets, window), [x.double() for x in inputs])
    plain = outputs_and_gradients(lambda *x: plain_attention(*x, offsets, window), inputs)
    got = outputs_and_gradients(
        lambda *x: packed_attention(*x, offsets, scale=0.3, window=window, backend=backend), inputs
    )
    assert_as_exact(got, plain, exact)


def test_packed_attention_with_strided_heads_empty_sequences_and_scores_far_apart(backend):
    both = 30 * draw((9, 4, 2, 16), dtype=torch.float32)[0]
    q, k = both.unbind(2)
    v = k.flip(0).transpose(1, 2).contiguous().transpose(1, 2)  # the entries of a head are apart
    out = packed_attention(q, k, v, [0, 0, 4, 4, 9, 9], scale=0.3, backend=backend)
    torch.testing.assert_close(out, plain_attention(q, k, v, [0, 4, 9], None), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out[[0, 4]], v[[0, 4]])  # a first token sees only itself


@pytest.mark.parametrize(("heads", "kv_heads", "window"), [(4, 2, None), (3, 1, 3), (2, 2, 1)])
def test_decode_attention_is_the_last_token_of_packed_attention(heads, kv_heads, window):
    """The cache of each row is longer than its tokens, and holds noise there that must not count."""
    lengths = [6, 1, 4]
    q, keys, values = draw((3, heads, 8), (5, kv_heads, 7, 8), (5, kv_heads, 7, 8), dtype=torch.float64)
    got = decode_attention(q, keys, values, torch.tensor(lengths), scale=0.3, window=window, backend="reference")
    for row, length in enumerate(lengths):
        k, v = (x[row, :, :length].transpose(0, 1) for x in (keys, values))
        expected = plain_attention(q[row].expand(length, heads, 8), k, v, [0, length], window)[-1]
        torch.testing.assert_close(got[row], expected)


def test_decode_attention_caps_its_scores():
    """One head of one entry: scores 2 tanh(1 * 2 / 2) and 2 tanh(1 * 0 / 2) = 0, of the values 1 and 0."""
    keys, values = torch.tensor([[2.0, 0.0], [1.0, 0.0]]).view(2, 1, 1, 2, 1)
    q = torch.ones(1, 1, 1)
    out = decode_attention(q, keys, values, torch.tensor([2]), scale=1.0, softcap=2.0, backend="reference")
    assert out.item() == pytest.approx(1 / (1 + math.exp(-2 * math.tanh(1.0))))


def by_hand(q: Tensor, k: Tensor, v: Tensor, offsets: list[int], window: int | None, softcap: float | None) -> Tensor:
    """softmax(softcap(0.3 q k^T)) v, a token and a head at a time."""
    groups, rows = q.shape[1] // k.shape[1], []
    for start, stop in pairwise(offsets):
        for i in range(start, stop):
            seen = slice(start if window is None else max(start, i + 1 - window), i + 1)
            scores = 0.3 * torch.einsum("hd,jhd->hj", q[i], k[seen].repeat_interleave(groups, 1))
            scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            rows.append(torch.einsum("hj,jhe->he", scores.softmax(-1), v[seen].repeat_interleave(groups, 1)))
    return torch.stack(rows)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("softcap", "entries"), [(0.5, 8), (0.5, 5), (None, 5)])
def test_attention_that_no_backend_takes_is_torchs(softcap, entries, window):
    """A soft-cap, values of another size than keys, or both: with gradients, and with none."""
    offsets = [0, 5, 5, 12]
    inputs = draw((12, 4, 8), (12, 2, 8), (12, 2, entries), dtype=torch.float32)
    exact = outputs_and_gradients(lambda *x: by_hand(*x, offsets, window, softcap), [x.double() for x in inputs])

    def run(*x: Tensor) -> Tensor:
        return packed_attention(*x, offsets, scale=0.3, window=window, softcap=softcap)

    for got, right in zip(outputs_and_gradients(run, inputs), exact, strict=True):
        torch.testing.assert_close(got.double(), right, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(run(*inputs).double(), exact[0], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="backend is 'reference', and no backend takes softcap="):
        packed_attention(*inputs, offsets, scale=0.3, softcap=softcap, backend="reference")


@pytest.mark.parametrize(("entries", "longest"), [(8, 6), (5, 6), (5, None)])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (2, 0.5)])
def test_decoding_where_no_kernel_runs_looks_as_far_as_the_longest_row(entries, longest, window, softcap):
    """What lies beyond a row's tokens is noise; what lies beyond the longest is not even read."""
    lengths = [6, 1, 4]
    q, keys, values = draw((3, 4, 8), (5, 2, 9, 8), (5, 2, 9, entries), dtype=torch.float64)
    if longest is not None:
        keys[:, :, longest:], values[:, :, longest:] = torch.nan, torch.nan
    got = decode_attention(
        q, keys, values, torch.tensor(lengths), scale=0.3, window=window, softcap=softcap, longest=longest
    )
    for row, length in enumerate(lengths):
        k, v = (x[row, :, :length].transpose(0, 1) for x in (keys, values))
        expected = by_hand(q[row].expand(length, 4, 8), k, v, [0, length], window, softcap)[-1]
        torch.testing.assert_close(got[row], expected, atol=1e-5, rtol=1e-4)  # a soft-cap is taken in float32
    if entries != 8:
        with pytest.raises(ValueError, match="no backend takes keys of 8 and values of 5 entries"):
            decode_attention(q, keys, values, torch.tensor(lengths), scale=0.3, backend="reference")


def test_the_number_of_threads_changes_nothing():
    inputs = draw((200, 6, 16), (200, 3, 16), (200, 3, 16), dtype=torch.bfloat16)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            run = outputs_and_gradients(lambda q, k, v: packed_attention(q, k, v, [0, 150, 200], scale=0.3), inputs)
            found.append([*run, rms_norm(inputs[0], inputs[1][0, 0], eps=1e-6), swiglu(inputs[1], inputs[2])])
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found[0], found[1], atol=0, rtol=0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: rms_norm(x, x[0, 0, :2], eps=1e-6), ValueError, "weight has shape"),
        (lambda x: swiglu(x, x.double()), TypeError, "one dtype"),
        (lambda x: rotary(x, x, x[:, 0], x[:, 0]), ValueError, "cos has shape"),
        (lambda x: packed_attention(x, x[:, :2], x[:, :2], [0, 4], scale=1), ValueError, "multiple of kv_heads"),
        (lambda x: packed_attention(x, x, x, [0, 3], scale=1), ValueError, "rise from 0 to the 4 tokens"),
        (lambda x: packed_attention(x, x, x, [0, 4], scale=1, window=0), ValueError, "window is 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.zeros(4, 3, 8))
