"""Log-probs by CUDA C++: the schedule of `chunked` with the row kernels of `csrc/cuda/logprobs.cu`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlhf_kernels.cuda_support import call
from rlhf_kernels.logprobs import chunked
from rlhf_kernels.logprobs.chunked import Chunks, refusal
from rlhf_kernels.logprobs.reference import Arguments, BackwardArguments

__all__ = ["linear_logprobs", "linear_logprobs_backward", "refusal"]

TYPES = {None: -1, torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # of the gradient, as the source numbers them


def linear_logprobs(a: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `chunked.linear_logprobs`."""
    return chunked.linear_logprobs(a, _score)


def linear_logprobs_backward(a: BackwardArguments) -> tuple[Tensor, Tensor, Tensor]:
    """As `chunked.linear_logprobs_backward`."""
    return chunked.linear_logprobs_backward(a, _gradient)


def _score(
    chunks: Chunks, labels: Tensor, u: Tensor, *,
    logprobs: Tensor, entropy: Tensor, largest: Tensor, log_sum: Tensor, gradient: Tensor | None, pull: Tensor | None,
) -> None:  # fmt: skip
    dtype = None if gradient is None else gradient.dtype
    columns = (logprobs, entropy, largest, log_sum, pull)
    call("rlhf_score_rows", u.device, u, labels, chunks.bias, *columns, TYPES[dtype], *_rows(chunks, u))


def _gradient(
    chunks: Chunks, labels: Tensor, u: Tensor, *, logprobs: Tensor, entropy: Tensor, largest: Tensor, log_sum: Tensor,
    d_logprobs: Tensor, d_entropy: Tensor, gradient: Tensor,
) -> None:  # fmt: skip
    columns = (logprobs, entropy, largest, log_sum, d_logprobs, d_entropy)
    call("rlhf_gradient_rows", u.device, u, labels, chunks.bias, *columns, TYPES[gradient.dtype], *_rows(chunks, u))


def _rows(chunks: Chunks, u: Tensor) -> tuple[Any, ...]:
    """Rows, vocabulary, stride, 1 / temperature and soft-cap, 0 for none."""
    return u.shape[0], u.shape[1], u.stride(0), 1 / chunks.temperature, chunks.softcap or 0.0
