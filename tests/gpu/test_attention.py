"""Attention on a CUDA device beside the reference in float64."""

from __future__ import annotations

import pytest
import torch

from rlhf_kernels import packed_attention
from rlhf_kernels.packed_attention import PACKED_ATTENTION
from tests.kernels.by_backend import arguments

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
OFFSETS = [0, 5, 5, 205, 206, 506]


def problem(heads, kv_heads, size, dtype):
    g = torch.Generator().manual_seed(heads * size)
    shapes = (OFFSETS[-1], heads, size), (OFFSETS[-1], kv_heads, size), (OFFSETS[-1], kv_heads, size)
    q, k, v = (torch.randn(shape, generator=g).to(dtype) for shape in shapes)
    return q, k, v, torch.randn(shapes[0], generator=g).to(dtype)


def run(q, k, v, d_out, backend, **settings):
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = packed_attention(*leaves, OFFSETS, backend=backend, **settings)
    out.backward(d_out)
    return [x.detach().double().cpu() for x in (out, *(leaf.grad for leaf in leaves))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 1, 60])
@pytest.mark.parametrize("heads, kv_heads, size", [(4, 4, 64), (8, 2, 128), (6, 1, 80), (2, 2, 256)])
def test_packed_attention_agrees_with_float64(heads, kv_heads, size, window, dtype):
    """Errors are at most twice those of the reference at the same precision, whose scores are float32 too."""
    given = problem(heads, kv_heads, size, dtype)
    settings = {"scale": size**-0.5, "window": window}
    on_device = [x.cuda() for x in given]
    assert PACKED_ATTENTION.backends["flash"].refusal(arguments("packed_attention", q=on_device[0])) is None
    exact = run(*(x.double() for x in given), "reference", **settings)
    found, plain = run(*on_device, "flash", **settings), run(*given, "reference", **settings)
    for name, a, b, c in zip(("out", "dq", "dk", "dv"), found, plain, exact, strict=True):
        error, allowed = (float((x - c).norm() / c.norm()) for x in (a, b))
        assert error <= 3 * allowed + 1e-3, (name, error, allowed)
