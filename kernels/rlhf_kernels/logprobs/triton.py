"""Log-probs by Triton: the schedule of `chunked` with the row kernels of `row_kernels`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rlhf_kernels.logprobs import chunked
from rlhf_kernels.logprobs import row_kernels as kernels
from rlhf_kernels.logprobs.chunked import Chunks, refusal
from rlhf_kernels.logprobs.reference import Arguments, BackwardArguments, PairArguments
from rlhf_kernels.triton_support import Variant

__all__ = ["VARIANTS", "linear_logprobs", "linear_logprobs_backward", "policy_reference_logprobs", "refusal"]

VARIANTS = kernels.VARIANTS


def linear_logprobs(a: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `chunked.linear_logprobs`."""
    return chunked.linear_logprobs(a, _score)


def linear_logprobs_backward(a: BackwardArguments) -> tuple[Tensor, Tensor, Tensor]:
    """As `chunked.linear_logprobs_backward`."""
    return chunked.linear_logprobs_backward(a, _gradient)


def policy_reference_logprobs(a: PairArguments) -> tuple[Tensor, Tensor, Tensor]:
    """As `chunked.policy_reference_logprobs`."""
    return chunked.policy_reference_logprobs(a, _compare)


def _score(chunks: Chunks, labels: Tensor, u: Tensor, *, gradient: Tensor | None, **columns: Tensor | None) -> None:
    variant = kernels.score(None if gradient is None else gradient.dtype, **_given(chunks))
    stride = None if gradient is None else gradient.stride(0)
    _launch(variant, chunks, labels, u, gradient=gradient, gradient_stride=stride, **columns)


def _gradient(chunks: Chunks, labels: Tensor, u: Tensor, *, gradient: Tensor, **columns: Tensor) -> None:
    variant = kernels.gradient(gradient.dtype, **_given(chunks))
    _launch(variant, chunks, labels, u, gradient=gradient, gradient_stride=gradient.stride(0), **columns)


def _compare(chunks: Chunks, labels: Tensor, u: Tensor, **columns: Tensor) -> None:
    _launch(kernels.compare(**_given(chunks)), chunks, labels, u, **columns)


def _given(chunks: Chunks) -> dict[str, bool]:
    return {"bias": chunks.bias is not None, "softcap": chunks.softcap is not None}


def _launch(variant: Variant, chunks: Chunks, labels: Tensor, u: Tensor, **arguments: Any) -> None:
    """One program for each row of `u`."""
    variant.launch(
        (u.shape[0],),
        u=u,
        labels=labels,
        bias=chunks.bias,
        vocabulary=u.shape[1],
        stride=u.stride(0),
        inverse_temperature=1 / chunks.temperature,
        softcap=chunks.softcap,
        **arguments,
    )
