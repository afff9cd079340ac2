"""Log-probs from hidden states in C++: a tile of float32 logits at a time, reduced while it is in cache.

Exact in the sense of the reference: bf16 or float32 operands, products accumulated and kept in float32. The gradient of
the hidden states comes with the log-probs (`directions`) or, the entropy's included, from tiles that are computed
again; a weight or bias that needs a gradient is for the reference. A row's result depends on neither the other rows
nor, without `directions`, the number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf_kernels.backends import Meant
from rlhf_kernels.extension import LEVEL, MISSING, native


def supports(args: Mapping[str, Any]) -> str | None:
    """Why the extension cannot take these arguments of `policy_reference_logprobs`, or None."""
    if MISSING is not None:
        return MISSING
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


def supports_forward(args: Mapping[str, Any]) -> str | None:
    """Why the extension cannot take these arguments of `linear_logprobs`, or None."""
    if args["weight_gradient"]:
        return Meant("weight or bias needs a gradient, and it gives that of hidden only; freeze them or leave it")
    return supports(args)


def supports_backward(args: Mapping[str, Any]) -> str | None:
    """Why the extension cannot take these arguments of `linear_logprobs_backward`, or None."""
    for name in ("weight", "bias"):
        if args[f"{name}_gradient"]:
            return Meant(f"{name} needs a gradient, and it gives that of hidden only; freeze {name} or leave it")
    return supports(args)


def linear_logprobs(
    *,
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    entropy: bool,
    directions: bool,
    weight_gradient: bool = False,  # has to be False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs (N,), entropy (N,) or (0,), statistics (2, N) and directions (N, H) or (0, H), all float32.

    The statistics are each row's largest logit and log sum e^(logit - largest); directions[i] is the gradient of
    logprobs[i] by hidden[i]. Arguments are taken as checked and supported.
    """
    hidden, labels, bias = _with_contiguous_rows(hidden), labels.contiguous(), _bias(bias)
    rows = labels.shape[0]
    logprobs, entropies, statistics = torch.zeros(rows), torch.zeros(rows if entropy else 0), torch.zeros(2, rows)
    gradients = torch.zeros(rows if directions else 0, hidden.shape[1])
    scoring = _scoring(hidden, weight, labels, bias, temperature, softcap)
    scores = _scores(logprobs, entropies if entropy else None, statistics)
    if directions:
        native.linear_logprobs_directions(scoring, **scores, directions=gradients.data_ptr())
    else:
        native.linear_logprobs(scoring, **scores)
    return logprobs, entropies, statistics, gradients


def linear_logprobs_backward(
    *,
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    logprobs: Tensor,
    entropy: Tensor,
    statistics: Tensor,
    d_logprobs: Tensor | None,
    d_entropy: Tensor | None,
    weight_gradient: bool,
    bias_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """d_hidden (N, H) in the dtype of hidden, and two empty tensors in place of d_weight and d_bias.

    `logprobs`, `entropy` and `statistics` are what the forward pass gave, `entropy` empty only where there is no
    `d_entropy`. Arguments are taken as checked and supported, which includes that neither weight nor bias needs a
    gradient.
    """
    hidden, labels, bias = _with_contiguous_rows(hidden), labels.contiguous(), _bias(bias)
    d_logprobs = torch.zeros(labels.shape[0]) if d_logprobs is None else _column(d_logprobs)
    d_entropy = None if d_entropy is None else _column(d_entropy)
    logprobs, entropy, statistics = _column(logprobs), _column(entropy), _column(statistics)
    d_hidden = torch.zeros(hidden.shape, dtype=hidden.dtype)
    native.linear_logprobs_backward(
        _scoring(hidden, weight, labels, bias, temperature, softcap),
        **_scores(logprobs, entropy, statistics),
        d_logprobs=d_logprobs.data_ptr(),
        d_entropy=0 if d_entropy is None else d_entropy.data_ptr(),
        d_hidden=d_hidden.data_ptr(),
    )
    return d_hidden, hidden.new_empty(0), hidden.new_empty(0)


def policy_reference_logprobs(
    *,
    hidden: Tensor,
    ref_hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    ref_weight: Tensor | None,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    exact_kl: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs (N,) of policy and reference, and KL (N,) or (0,); arguments are taken as checked and supported."""
    hidden, ref_hidden = _with_contiguous_rows(hidden), _with_contiguous_rows(ref_hidden)
    ref_weight = weight if ref_weight is None else ref_weight
    labels, bias = labels.contiguous(), _bias(bias)
    rows = labels.shape[0]
    logprobs, ref_logprobs, kl = torch.zeros(rows), torch.zeros(rows), torch.zeros(rows if exact_kl else 0)
    native.policy_reference_logprobs(
        _scoring(hidden, weight, labels, bias, temperature, softcap),
        ref_hidden=ref_hidden.data_ptr(),
        ref_hidden_stride=ref_hidden.stride(0),
        ref_weight=ref_weight.data_ptr(),
        ref_weight_stride=ref_weight.stride(0),
        logprobs=logprobs.data_ptr(),
        ref_logprobs=ref_logprobs.data_ptr(),
        kl=kl.data_ptr() if exact_kl else 0,
    )
    return logprobs, ref_logprobs, kl


def _scoring(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, temperature: float, softcap: float | None
) -> native.Scoring:
    """The arguments by address: the caller keeps the tensors alive."""
    return native.Scoring(
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


def _scores(logprobs: Tensor, entropy: Tensor | None, statistics: Tensor) -> dict[str, int]:
    """The columns by address: the caller keeps the tensors alive."""
    return {
        "logprobs": logprobs.data_ptr(),
        "entropy": 0 if entropy is None else entropy.data_ptr(),
        "max": statistics[0].data_ptr(),
        "log_sum": statistics[1].data_ptr(),
    }


def _column(x: Tensor) -> Tensor:
    return x.detach().float().contiguous()


def _bias(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else _column(bias)


def _rows_are_contiguous(x: Tensor) -> bool:
    return x.shape[1] == 1 or x.stride(1) == 1


def _with_contiguous_rows(x: Tensor) -> Tensor:
    return x if _rows_are_contiguous(x) else x.contiguous()
