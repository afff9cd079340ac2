"""The log-prob operations as torch ops, and the gradient of the first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf_kernels import backends
from rlhf_kernels.checks import check_values
from rlhf_kernels.library import Arguments, define, define_gradient
from rlhf_kernels.logprobs import native, reference, triton
from rlhf_kernels.logprobs.reference import IGNORED
from rlhf_kernels.precision import accumulation_dtype

SUPPORTS = {
    "linear_logprobs": native.supports_forward,
    "linear_logprobs_backward": native.supports_backward,
    "policy_reference_logprobs": native.supports,
}
for _name, _supports in SUPPORTS.items():
    backends.register(_name, "native", getattr(native, _name), _supports)
    backends.register(_name, "triton", getattr(triton, _name), triton.supports)
    backends.register(_name, "reference", getattr(reference, _name))


def _check_labels(args: Arguments) -> None:
    labels, vocabulary = args["labels"], args["weight"].shape[0]
    check_values(
        ((labels == IGNORED) | ((labels >= 0) & (labels < vocabulary))).all(),
        lambda: (
            f"labels run from {int(labels.min())} to {int(labels.max())}, expected {IGNORED} or ids in "
            f"[0, {vocabulary}): check that tokenizer and weight belong together"
        ),
    )


def _empty(args: Arguments, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    dtype = accumulation_dtype(args["hidden"], args["weight"])
    return tuple(args["hidden"].new_empty(shape, dtype=dtype) for shape in shapes)


def _fake(args: Arguments) -> tuple[Tensor, ...]:
    n, h = args["hidden"].shape
    return _empty(args, (n,), (n if args["entropy"] else 0,), (2, n), (n if args["directions"] else 0, h))


def _fake_backward(args: Arguments) -> tuple[Tensor, ...]:
    hidden, weight, bias = args["hidden"], args["weight"], args["bias"]
    d_weight = torch.empty_like(weight) if args["weight_gradient"] else weight.new_empty(0)
    d_bias = torch.empty_like(bias) if args["bias_gradient"] else hidden.new_empty(0)
    return hidden.new_empty(hidden.shape), d_weight, d_bias


def _fake_scoring(args: Arguments) -> tuple[Tensor, ...]:
    n = args["hidden"].shape[0]
    return _empty(args, (n,), (n,), (n if args["exact_kl"] else 0,))


def _keep(ctx: Any, args: Arguments, results: tuple[Tensor, ...]) -> None:
    logprobs, entropy, statistics, directions = results
    names = ("hidden", "weight", "labels", "bias")
    ctx.directions = args["directions"]
    ctx.settings = args["temperature"], args["softcap"]
    ctx.backend, ctx.dtype = args["backend"], args["hidden"].dtype
    if ctx.directions:
        ctx.save_for_backward(directions)
    else:
        ctx.save_for_backward(*(args[name] for name in names), logprobs, entropy, statistics)


def _gradients(
    ctx: Any, d_logprobs: Tensor | None, d_entropy: Tensor | None, *_: Tensor | None
) -> Mapping[str, Tensor | None]:
    if ctx.directions:
        (directions,) = ctx.saved_tensors
        return {} if d_logprobs is None else {"hidden": (d_logprobs[:, None] * directions).to(ctx.dtype)}
    hidden, weight, labels, bias, *results = ctx.saved_tensors
    _, weight_gradient, _, bias_gradient, *_ = ctx.needs_input_grad
    d_hidden, d_weight, d_bias = linear_logprobs_backward(
        hidden, weight, labels, bias, *ctx.settings, *results, d_logprobs, d_entropy,
        weight_gradient, bias_gradient, ctx.backend,
    )  # fmt: skip
    return {
        "hidden": d_hidden,
        "weight": d_weight if weight_gradient else None,
        "bias": d_bias if bias_gradient else None,
    }


linear_logprobs = define(
    "linear_logprobs(Tensor hidden, Tensor weight, Tensor labels, Tensor? bias, float temperature, float? softcap, "
    "bool entropy, bool directions, bool weight_gradient, str? backend) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_fake,
    check=_check_labels,
)
linear_logprobs_backward = define(
    "linear_logprobs_backward(Tensor hidden, Tensor weight, Tensor labels, Tensor? bias, float temperature, "
    "float? softcap, Tensor logprobs, Tensor entropy, Tensor statistics, Tensor? d_logprobs, Tensor? d_entropy, "
    "bool weight_gradient, bool bias_gradient, str? backend) -> (Tensor, Tensor, Tensor)",
    fake=_fake_backward,
)
policy_reference_logprobs = define(
    "policy_reference_logprobs(Tensor hidden, Tensor ref_hidden, Tensor weight, Tensor labels, Tensor? ref_weight, "
    "Tensor? bias, float temperature, float? softcap, bool exact_kl, str? backend) -> (Tensor, Tensor, Tensor)",
    fake=_fake_scoring,
    check=_check_labels,
)
define_gradient(linear_logprobs, keep=_keep, gradients=_gradients)
