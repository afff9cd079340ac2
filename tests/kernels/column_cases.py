"""What the tests of the native column operations share: data types, threads, and the bound on the error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlhf_kernels import extension

needs_native = pytest.mark.skipif(
    extension.MISSING is not None, reason="the C++ extension is not built: install the package from source"
)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])


def offsets(lengths):
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)


def assert_as_accurate_as_torch(got, torch_result, exact):
    """The error of `got` against `exact` in float64 is at most twice that of `torch_result`, plus some roundings.

    More of them where the results are float64 themselves: there `exact` is a sum that rounds as much as `got`.
    """
    assert got.dtype == torch_result.dtype and got.shape == torch_result.shape
    if not got.numel():
        return
    roundings = 256 if got.dtype == torch.float64 else 8
    tiny = roundings * torch.finfo(got.dtype).eps * exact.abs().max()
    error, allowed = (got.double() - exact).abs().max(), (torch_result.double() - exact).abs().max()
    assert error <= 2 * allowed + tiny, f"error {error:.3g}, torch's {allowed:.3g}"


def assert_independent_of_threads(run):
    """`run()` gives the same tensors, bit for bit, on one, two and three threads."""
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run())
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
