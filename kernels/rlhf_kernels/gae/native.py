"""Generalised advantage estimation in C++: one thread walks one sequence, as many threads as torch uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

try:
    import rlhf_kernels._native as _native
except ImportError as error:
    _missing: str | None = (
        f"the C++ extension is not available ({error}); to build it, install a C++17 compiler and the "
        "Python headers and reinstall rlhf-fast from source"
    )
else:
    _missing = None


def supports(args: Mapping[str, Any]) -> str | None:
    """Why the extension cannot take these arguments of `gae_`, or None."""
    if _missing:
        return _missing
    for name, value in args.items():
        if isinstance(value, Tensor) and value.device.type != "cpu":
            return f"{name} is on {value.device}, and it runs on CPU tensors only"
        if isinstance(value, Tensor) and not value.is_contiguous():
            return f"{name} is not contiguous; call .contiguous() on it first"
    return None


def gae_(
    rewards: Tensor, values: Tensor, cu_responses: Tensor, *, gamma: float, lam: float, bootstrap: Tensor | None
) -> Tensor:
    """As the reference; arguments are taken as checked and supported."""
    returns = torch.empty_like(values)
    run = _native.gae_float64 if rewards.dtype == torch.float64 else _native.gae_float32
    run(
        rewards=rewards.data_ptr(),
        values=values.data_ptr(),
        returns=returns.data_ptr(),
        cu=cu_responses.data_ptr(),
        bootstrap=0 if bootstrap is None else bootstrap.data_ptr(),
        sequences=cu_responses.numel() - 1,
        gamma=gamma,
        gamma_lam=gamma * lam,
        threads=torch.get_num_threads(),
    )
    return returns
