"""Log-probs of labels, entropy and KL straight from hidden states; the (N, V) logits never exist all at once.

    reference   the specification, and what the operations take and give
    native      C++, a tile of logits at a time
    chunked     CUDA, a chunk of rows at a time, by the row kernels of
    triton      which are in `row_kernels`, or of
    cuda        which are CUDA C++ and run where they are named

Here: the projection by the output embedding, its soft-cap, its temperature and the softmax. Not here: which positions
are scored, and the KL estimators computed from two log-probs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_kernels.checks import accumulation_dtype, check_shape, check_values
from rlhf_kernels.cuda_support import in_cuda
from rlhf_kernels.logprobs import native, reference
from rlhf_kernels.logprobs.reference import IGNORED, Arguments, BackwardArguments, PairArguments
from rlhf_kernels.op import Backend, Gradient, Op
from rlhf_kernels.triton_support import in_triton

__all__ = ["IGNORED", "LogProbs", "PolicyReferenceLogProbs", "linear_logprobs", "policy_reference_logprobs"]

TRITON, CUDA = "rlhf_kernels.logprobs.triton", "rlhf_kernels.logprobs.cuda"


class LogProbs(NamedTuple):
    """Log-prob of each row's label, and each row's entropy where it was asked for."""

    logprobs: Tensor  # (N,) f32 | f64
    entropy: Tensor | None  # (N,) f32 | f64


class PolicyReferenceLogProbs(NamedTuple):
    """Log-prob of each row's label under both models, and each row's exact KL where it was asked for."""

    logprobs: Tensor  # (N,) f32 | f64
    ref_logprobs: Tensor  # (N,) f32 | f64
    kl: Tensor | None  # (N,) f32 | f64


def linear_logprobs(
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    labels: Tensor,  # (N,)
    *,
    bias: Tensor | None = None,  # (V,)
    temperature: float = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    entropy_gradient: bool = True,
    scored: int | None = None,
    backend: str | None = None,
) -> LogProbs:
    """Log-prob of each label, and entropy in nats, under log softmax(softcap(h W^T + b) / temperature).

    `softcap` c maps a logit z to c tanh(z / c), as Gemma 2 does. A row with label -100 is skipped before the
    projection: it gets log-prob 0, entropy 0 and no gradient. `hidden`, `weight` and `bias` are floats of any
    precision; products are accumulated and kept in float32 (float64 where an input is float64), also under autocast.

    Returns `LogProbs(logprobs (N,), entropy (N,) or None)` in that precision, once differentiable in hidden, weight
    and bias. Where only hidden needs a gradient, and the entropy none (`entropy_gradient=False` where it is but a
    metric), the gradient is prepared in the forward pass: two products in all and N H floats of memory; else the
    logits are computed again. Nothing is mutated. Raises ValueError or TypeError for shapes or dtypes that do not fit,
    for labels outside [0, V) other than -100, for a temperature or softcap that is not positive, and for a chosen
    backend that cannot run.

    `scored` is how many labels are not -100, for a caller who knows: on CUDA nothing then waits for the device.

    `backend` is "native" (C++, CPU, hidden and weight both bfloat16 or both float32, gradients for hidden only),
    "triton" or "cuda" (CUDA; "cuda" only where it is named) or "reference" (torch); None takes RLHF_FAST_BACKEND from
    the environment, else the first that can.
    """
    _check(hidden, weight, labels, bias, temperature, softcap)
    weight_gradient = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (weight, bias))
    directions = torch.is_grad_enabled() and hidden.requires_grad and not weight_gradient
    directions = directions and not (entropy and entropy_gradient)
    settings = (float(temperature), softcap, entropy, directions, weight_gradient, scored)
    logprobs, entropies, _, _ = LINEAR_LOGPROBS(Arguments(hidden, weight, labels, bias, *settings), backend)
    if not entropy:
        return LogProbs(logprobs, None)
    return LogProbs(logprobs, entropies if entropy_gradient else entropies.detach())


def policy_reference_logprobs(
    hidden: Tensor,  # (N, H)
    ref_hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    labels: Tensor,  # (N,)
    *,
    ref_weight: Tensor | None = None,  # (V, H)
    bias: Tensor | None = None,  # (V,)
    temperature: float = 1.0,
    softcap: float | None = None,
    exact_kl: bool = False,
    scored: int | None = None,
    backend: str | None = None,
) -> PolicyReferenceLogProbs:
    """Log-probs of the labels under policy and reference and, with `exact_kl`, KL(policy || reference) in nats.

    The two models share `weight` (unless `ref_weight` is given), `bias`, temperature and softcap; the exact KL of a
    row is the sum over the vocabulary of p (log p - log r). Rows with label -100 are skipped and get 0 everywhere.
    Precision, formulas, errors, `scored` and backends (but "cuda") are those of `linear_logprobs`. No gradient flows.

    Returns `PolicyReferenceLogProbs(logprobs (N,), ref_logprobs (N,), kl (N,) or None)`. Nothing is mutated.
    """
    _check(hidden, weight, labels, bias, temperature, softcap)
    check_shape("ref_hidden", ref_hidden, tuple(hidden.shape))
    if ref_weight is not None:
        check_shape("ref_weight", ref_weight, tuple(weight.shape))
    settings = (float(temperature), softcap, exact_kl, scored)
    a = PairArguments(hidden, ref_hidden, weight, labels, ref_weight, bias, *settings)
    with torch.no_grad():
        logprobs, ref_logprobs, kl = POLICY_REFERENCE_LOGPROBS(a, backend)
    return PolicyReferenceLogProbs(logprobs, ref_logprobs, kl if exact_kl else None)


def _check(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, temperature: float, softcap: float | None
) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)} and weight {tuple(weight.shape)}, expected (N, H) and (V, H): "
            "select the scored positions and flatten them to rows first"
        )
    check_shape("labels", labels, (hidden.shape[0],))
    if labels.dtype != torch.int64:
        raise TypeError(f"labels have dtype {labels.dtype}, expected int64: convert them with .long()")
    if bias is not None:
        check_shape("bias", bias, (weight.shape[0],))
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected a number above 0: greedy decoding has no log-probs")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap is {softcap}, expected a number above 0: leave it None for logits without a cap")


def _check_labels(a: Arguments | PairArguments) -> None:
    labels, vocabulary = a.labels, a.weight.shape[0]
    if a.scored is not None:
        check_values(
            (labels != IGNORED).sum() == a.scored,
            lambda: f"scored is {a.scored}, and {int((labels != IGNORED).sum())} labels are not {IGNORED}: count those",
        )
    check_values(
        ((labels == IGNORED) | ((labels >= 0) & (labels < vocabulary))).all(),
        lambda: (
            f"labels run from {int(labels.min())} to {int(labels.max())}, expected {IGNORED} or ids in "
            f"[0, {vocabulary}): check that tokenizer and weight belong together"
        ),
    )


def _empty(a: Arguments | PairArguments, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    dtype = accumulation_dtype(a.hidden, a.weight)
    return tuple(a.hidden.new_empty(shape, dtype=dtype) for shape in shapes)


def _fake(a: Arguments) -> tuple[Tensor, ...]:
    n, h = a.hidden.shape
    return _empty(a, (n,), (n if a.entropy else 0,), (2, n), (n if a.directions else 0, h))


def _fake_backward(a: BackwardArguments) -> tuple[Tensor, ...]:
    d_weight = torch.empty_like(a.weight) if a.weight_gradient else a.weight.new_empty(0)
    d_bias = a.hidden.new_empty(0) if a.bias is None or not a.bias_gradient else torch.empty_like(a.bias)
    return a.hidden.new_empty(a.hidden.shape), d_weight, d_bias


def _fake_pair(a: PairArguments) -> tuple[Tensor, ...]:
    n = a.hidden.shape[0]
    return _empty(a, (n,), (n,), (n if a.exact_kl else 0,))


def _keep(ctx: Any, a: Arguments, results: tuple[Tensor, ...]) -> None:
    logprobs, entropy, statistics, directions = results
    ctx.settings = {"temperature": a.temperature, "softcap": a.softcap, "scored": a.scored}
    ctx.directions, ctx.dtype = a.directions, a.hidden.dtype
    if a.directions:
        ctx.save_for_backward(directions)
    else:
        ctx.save_for_backward(a.hidden, a.weight, a.labels, a.bias, logprobs, entropy, statistics)


def _gradients(
    ctx: Any, d_logprobs: Tensor | None, d_entropy: Tensor | None, *_: Tensor | None
) -> Mapping[str, Tensor | None]:
    if ctx.directions:
        (directions,) = ctx.saved_tensors
        return {} if d_logprobs is None else {"hidden": (d_logprobs[:, None] * directions).to(ctx.dtype)}
    hidden, weight, labels, bias, logprobs, entropy, statistics = ctx.saved_tensors
    _, weight_gradient, _, bias_gradient, *_ = ctx.needs_input_grad
    a = BackwardArguments(
        hidden, weight, labels, bias, **ctx.settings, logprobs=logprobs, entropy=entropy, statistics=statistics,
        d_logprobs=d_logprobs, d_entropy=d_entropy, weight_gradient=weight_gradient, bias_gradient=bias_gradient,
    )  # fmt: skip
    d_hidden, d_weight, d_bias = LINEAR_LOGPROBS_BACKWARD(a, ctx.backend)
    return {
        "hidden": d_hidden,
        "weight": d_weight if weight_gradient else None,
        "bias": d_bias if bias_gradient else None,
    }


LINEAR_LOGPROBS = Op(
    "linear_logprobs",
    Arguments,
    "(Tensor, Tensor, Tensor, Tensor)",
    fake=_fake,
    check=_check_labels,
    gradient=Gradient(_keep, _gradients),
    backends={
        "native": Backend(native.linear_logprobs, native.forward_refusal),
        "triton": in_triton(TRITON, "linear_logprobs"),
        "cuda": in_cuda(CUDA, "linear_logprobs"),
        "reference": Backend(reference.linear_logprobs),
    },
)
LINEAR_LOGPROBS_BACKWARD = Op(
    "linear_logprobs_backward",
    BackwardArguments,
    "(Tensor, Tensor, Tensor)",
    fake=_fake_backward,
    backends={
        "native": Backend(native.linear_logprobs_backward, native.backward_refusal),
        "triton": in_triton(TRITON, "linear_logprobs_backward"),
        "cuda": in_cuda(CUDA, "linear_logprobs_backward"),
        "reference": Backend(reference.linear_logprobs_backward),
    },
)
POLICY_REFERENCE_LOGPROBS = Op(
    "policy_reference_logprobs",
    PairArguments,
    "(Tensor, Tensor, Tensor)",
    fake=_fake_pair,
    check=_check_labels,
    backends={
        "native": Backend(native.policy_reference_logprobs, native.pair_refusal),
        "triton": in_triton(TRITON, "policy_reference_logprobs"),
        "reference": Backend(reference.policy_reference_logprobs),
    },
)
