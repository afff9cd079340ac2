"""Log-probs from hidden states in C++: a tile of float32 logits at a time, reduced while it is in cache.

Exact in the sense of the reference: bf16 or float32 operands, products accumulated and kept in float32. The backward
pass computes the tiles again and gives the gradient of the hidden states; a weight or bias that needs one is for the
reference. A row's result depends on neither the other rows nor, in the forward pass, the number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf_kernels.logprobs.reference import LogProbs, PolicyReferenceLogProbs

try:
    from rlhf_kernels import _native
    from rlhf_kernels._native import levels
except ImportError as error:
    _missing: str | None = (
        f"the C++ extension is not available ({error}); to build it, install a C++17 compiler and the "
        "Python headers and reinstall rlhf-fast from source"
    )
    LEVEL = ""
else:
    _missing = None
    LEVEL = levels()[-1]  # the instruction set that is used: the fastest that the processor has


def supports(args: Mapping[str, Any]) -> str | None:
    """Why the extension cannot take these arguments of `linear_logprobs`, or None."""
    reason = supports_scoring(args)
    if reason is None and torch.is_grad_enabled():
        for name in ("weight", "bias"):
            if args[name] is not None and args[name].requires_grad:
                return f"{name} needs a gradient, and it gives that of hidden only; freeze {name} or leave it"
    return reason


def supports_scoring(args: Mapping[str, Any]) -> str | None:
    """Why the extension cannot take these arguments of `policy_reference_logprobs`, or None."""
    if _missing:
        return _missing
    if LEVEL == "portable":
        return "this processor has neither AVX2 nor AVX-512 with bf16, and without them the reference is faster"
    for name, value in args.items():
        if isinstance(value, Tensor) and value.device.type != "cpu":
            return f"{name} is on {value.device}, and it runs on CPU tensors only"
    operands = {k: args[k] for k in ("hidden", "ref_hidden", "weight", "ref_weight") if args.get(k) is not None}
    if {x.dtype for x in operands.values()} not in ({torch.bfloat16}, {torch.float32}):
        got = ", ".join(f"{name} {x.dtype}" for name, x in operands.items())
        return f"got {got}, and it takes bfloat16 or float32, the same for all"
    if args["hidden"].shape[1] == 0:
        return "the rows of hidden are empty"
    if args["bias"] is not None and args["bias"].dtype == torch.float64:
        return "bias is float64, and it adds in float32"
    for name in ("weight", "ref_weight"):
        if name in operands and not _rows_are_contiguous(operands[name]):
            return f"the rows of {name} are not contiguous; call .contiguous() on it first"
    return None


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    entropy: bool,
) -> LogProbs:
    """As the reference; arguments are taken as checked and supported."""
    out = _LinearLogProbs.apply(hidden, weight, labels, bias, temperature, softcap, entropy)
    return LogProbs(out[0], out[1] if entropy else None)


def policy_reference_logprobs(
    hidden: Tensor,
    ref_hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    ref_weight: Tensor | None,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    exact_kl: bool,
) -> PolicyReferenceLogProbs:
    """As the reference; arguments are taken as checked and supported."""
    hidden, ref_hidden = _with_contiguous_rows(hidden), _with_contiguous_rows(ref_hidden)
    ref_weight = weight if ref_weight is None else ref_weight
    labels, bias = labels.contiguous(), _bias(bias)
    logprobs, ref_logprobs, kl = (torch.zeros(labels.shape[0]) for _ in range(3))
    _native.policy_reference_logprobs(
        _scoring(hidden, weight, labels, bias, temperature, softcap),
        ref_hidden=ref_hidden.data_ptr(),
        ref_hidden_stride=ref_hidden.stride(0),
        ref_weight=ref_weight.data_ptr(),
        ref_weight_stride=ref_weight.stride(0),
        logprobs=logprobs.data_ptr(),
        ref_logprobs=ref_logprobs.data_ptr(),
        kl=kl.data_ptr(),
    )
    return PolicyReferenceLogProbs(logprobs, ref_logprobs, kl if exact_kl else None)


class _LinearLogProbs(torch.autograd.Function):
    """Log-probs and, where asked for, entropy; both differentiable in the hidden states, once.

    Kept for the backward pass, beside the inputs: each row's results, its largest logit and log sum e^(z - largest).
    """

    @staticmethod
    def forward(ctx, hidden, weight, labels, bias, temperature, softcap, entropy):
        hidden, labels, bias = _with_contiguous_rows(hidden), labels.contiguous(), _bias(bias)
        logprobs, entropies, largest, log_sum = (torch.zeros(labels.shape[0]) for _ in range(4))
        scores = {"logprobs": logprobs, "entropy": entropies, "max": largest, "log_sum": log_sum}
        _native.linear_logprobs(_scoring(hidden, weight, labels, bias, temperature, softcap), **_pointers(scores))
        ctx.save_for_backward(hidden, weight, labels, bias, *scores.values())
        ctx.settings = temperature, softcap
        ctx.set_materialize_grads(False)
        return logprobs, entropies if entropy else None

    @staticmethod
    def backward(ctx, d_logprobs, d_entropy):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "got create_graph=True, but this gradient has none: use backend='reference' for a second"
            )
        hidden, weight, labels, bias, *scores = ctx.saved_tensors
        d_hidden = torch.zeros(hidden.shape, dtype=hidden.dtype)
        gradients = {"d_logprobs": _column(d_logprobs, labels), "d_entropy": _column(d_entropy, labels)}
        _native.linear_logprobs_backward(
            _scoring(hidden, weight, labels, bias, *ctx.settings),
            **_pointers(dict(zip(("logprobs", "entropy", "max", "log_sum"), scores, strict=True))),
            **_pointers(gradients),
            d_hidden=d_hidden.data_ptr(),
        )
        return d_hidden, None, None, None, None, None, None


def _scoring(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, temperature: float, softcap: float | None
) -> _native.Scoring:
    """The arguments by address: the caller keeps the tensors alive."""
    return _native.Scoring(
        hidden=hidden.data_ptr(),
        hidden_stride=hidden.stride(0),
        weight=weight.data_ptr(),
        weight_stride=weight.stride(0),
        bias=0 if bias is None else bias.data_ptr(),
        labels=labels.data_ptr(),
        rows=hidden.shape[0],
        vocabulary=weight.shape[0],
        hidden_size=hidden.shape[1],
        temperature=temperature,
        softcap=softcap or 0.0,
        bf16=hidden.dtype == torch.bfloat16,
        level=LEVEL,
        threads=torch.get_num_threads(),
    )


def _pointers(columns: dict[str, Tensor]) -> dict[str, int]:
    return {name: column.data_ptr() for name, column in columns.items()}


def _column(gradient: Tensor | None, labels: Tensor) -> Tensor:
    return torch.zeros(labels.shape[0]) if gradient is None else gradient.contiguous()


def _bias(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().float().contiguous()


def _rows_are_contiguous(x: Tensor) -> bool:
    return x.shape[1] == 1 or x.stride(1) == 1


def _with_contiguous_rows(x: Tensor) -> Tensor:
    return x if _rows_are_contiguous(x) else x.contiguous()
