"""Decode attention by Triton beside the reference in float64.

The grid: heads in groups of 1 to more than a block's, sizes that are no powers of two, rows of one token and of
several parts, windows, soft-caps.
"""

from __future__ import annotations

import pytest
import torch

from rlhf_kernels import decode_attention
from tests.kernels.by_backend import triton as backend

LENGTHS = (1, 64, 65, 200, 7)


def problem(heads, kv_heads, size, dtype, capacity=7, length=201):
    g = torch.Generator().manual_seed(heads * size)
    q = torch.randn(len(LENGTHS), heads, size, generator=g).to(dtype)
    keys, values = (torch.randn(capacity, kv_heads, length, size, generator=g).to(dtype) for _ in range(2))
    keys[:, :, 200] = values[:, :, 200] = float("nan")  # beyond every row: never read
    return q, keys, values


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("window, softcap", [(None, None), (50, None), (None, 3.0)])
@pytest.mark.parametrize("heads, kv_heads, size", [(2, 2, 64), (6, 2, 20), (40, 2, 96)])
def test_agrees_with_float64(device, monkeypatch, heads, kv_heads, size, window, softcap, parts):
    monkeypatch.setattr("rlhf_kernels.decode_attention_triton.parts_of", lambda *_: parts)
    dtypes = (torch.float32, torch.bfloat16) if size <= 64 else (torch.float16, torch.bfloat16)
    for dtype in dtypes:
        q, keys, values = problem(heads, kv_heads, size, dtype)
        lengths = torch.tensor(LENGTHS)
        settings = {"scale": size**-0.5, "window": window, "softcap": softcap}
        exact = decode_attention(
            q.double(),
            keys.double().nan_to_num(),
            values.double().nan_to_num(),
            lengths,
            **settings,
            backend="reference",
        )
        args = {"q": q, "keys": keys, "values": values, "lengths": lengths}
        args = {name: x.to(device) for name, x in args.items()}
        assert backend.refusal("decode_attention", **args) is None
        found = backend.decode_attention(**args, **settings)
        assert found.dtype == dtype and found.shape == q.shape
        # shares are rounded to the operands' dtype before their product with the values, as in flash attention
        tolerance = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
        assert float((found.cpu().double() - exact).abs().max()) < tolerance * float(exact.abs().max())


def test_large_heads_in_float32_are_left_to_the_reference(device):
    q, keys, values = (x.to(device) for x in problem(2, 2, 65, torch.float32))
    reason = backend.refusal("decode_attention", q=q, keys=keys, values=values, lengths=torch.ones(5, device=device))
    assert reason == "heads have 65 entries, and it takes up to 64 in torch.float32"


def test_parts_are_enough_for_all_processors_and_never_tiny():
    from rlhf_kernels.decode_attention_triton import parts_of

    assert parts_of(rows=64, kv_heads=8, length=4096, processors=132) == 1
    assert parts_of(rows=1, kv_heads=8, length=4096, processors=132) == 32
    assert parts_of(rows=1, kv_heads=8, length=300, processors=132) == 2
    assert parts_of(rows=1, kv_heads=1, length=10, processors=132) == 1
