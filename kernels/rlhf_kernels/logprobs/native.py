"""Log-probs from hidden states in C++: a tile of float32 logits at a time, reduced while it is in cache.

Exact in the sense of the reference: bf16 or float32 operands, products accumulated and kept in float32. The gradient of
the hidden states comes with the log-probs (`directions`) or, the entropy's included, from tiles that are computed
again; a weight or bias that needs a gradient is for the reference. A row's result depends on neither the other rows
nor, without `directions`, the number of threads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlhf_kernels import extension
from rlhf_kernels.extension import address, native
from rlhf_kernels.logprobs.reference import Arguments, BackwardArguments, PairArguments
from rlhf_kernels.op import NoLoss, processor_refusal


def _refusal(a: Any, **operands: Tensor) -> str | None:
    """Why the extension cannot take these arguments, or None. `operands`: hidden states and weights."""
    if extension.MISSING is not None:
        return extension.MISSING
    for name, value in zip(a._fields, a, strict=True):
        if isinstance(value, Tensor) and value.device.type != "cpu":
            return f"{name} is on {value.device}, and it runs on CPU tensors only"
    if {x.dtype for x in operands.values()} not in ({torch.bfloat16}, {torch.float32}):
        got = ", ".join(f"{name} {x.dtype}" for name, x in operands.items())
        return f"got {got}, and it takes bfloat16 or float32, the same for all"
    if a.hidden.shape[1] == 0:
        return "the rows of hidden are empty"
    if a.bias is not None and a.bias.dtype == torch.float64:
        return "bias is float64, and it adds in float32"
    for name in ("weight", "ref_weight"):
        if name in operands and not _rows_are_contiguous(operands[name]):
            return f"the rows of {name} are not contiguous; call .contiguous() on it first"
    return processor_refusal()


def refusal(a: Any) -> str | None:
    """Why the extension cannot take these arguments of an op with one `hidden` and one `weight`, or None."""
    return _refusal(a, hidden=a.hidden, weight=a.weight)


def pair_refusal(a: PairArguments) -> str | None:
    """As `refusal`, of `policy_reference_logprobs`."""
    of_reference = {} if a.ref_weight is None else {"ref_weight": a.ref_weight}
    return _refusal(a, hidden=a.hidden, ref_hidden=a.ref_hidden, weight=a.weight, **of_reference)


def forward_refusal(a: Arguments) -> str | None:
    """As `refusal`, of `linear_logprobs`: it has no backward for weight and bias."""
    if a.weight_gradient:
        return NoLoss("weight or bias needs a gradient, and it gives that of hidden only; freeze them or leave it")
    return refusal(a)


def backward_refusal(a: BackwardArguments) -> str | None:
    """As `refusal`, of `linear_logprobs_backward`."""
    for name, asked in (("weight", a.weight_gradient), ("bias", a.bias_gradient)):
        if asked:
            return NoLoss(f"{name} needs a gradient, and it gives that of hidden only; freeze {name} or leave it")
    return refusal(a)


def linear_logprobs(a: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As the reference, all float32; arguments are taken as checked and supported."""
    hidden, labels, bias = _with_contiguous_rows(a.hidden), a.labels.contiguous(), _bias(a.bias)
    rows = labels.shape[0]
    logprobs, entropies, statistics = torch.zeros(rows), torch.zeros(rows if a.entropy else 0), torch.zeros(2, rows)
    directions = torch.zeros(rows if a.directions else 0, hidden.shape[1])
    scoring = _scoring(hidden, a.weight, labels, bias, a.temperature, a.softcap)
    scores = _scores(logprobs, entropies if a.entropy else None, statistics)
    if a.directions:
        native.linear_logprobs_directions(scoring, **scores, directions=directions.data_ptr())
    else:
        native.linear_logprobs(scoring, **scores)
    return logprobs, entropies, statistics, directions


def linear_logprobs_backward(a: BackwardArguments) -> tuple[Tensor, Tensor, Tensor]:
    """d_hidden, and two empty tensors in place of d_weight and d_bias. The logits are computed again."""
    hidden, labels, bias = _with_contiguous_rows(a.hidden), a.labels.contiguous(), _bias(a.bias)
    d_logprobs = torch.zeros(labels.shape[0]) if a.d_logprobs is None else _column(a.d_logprobs)
    d_entropy = None if a.d_entropy is None else _column(a.d_entropy)
    logprobs, entropy, statistics = _column(a.logprobs), _column(a.entropy), _column(a.statistics)
    d_hidden = torch.zeros(hidden.shape, dtype=hidden.dtype)
    native.linear_logprobs_backward(
        _scoring(hidden, a.weight, labels, bias, a.temperature, a.softcap),
        **_scores(logprobs, entropy, statistics),
        d_logprobs=d_logprobs.data_ptr(),
        d_entropy=address(d_entropy),
        d_hidden=d_hidden.data_ptr(),
    )
    return d_hidden, hidden.new_empty(0), hidden.new_empty(0)


def policy_reference_logprobs(a: PairArguments) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference, all float32; arguments are taken as checked and supported."""
    hidden, ref_hidden = _with_contiguous_rows(a.hidden), _with_contiguous_rows(a.ref_hidden)
    ref_weight = a.weight if a.ref_weight is None else a.ref_weight
    labels, bias = a.labels.contiguous(), _bias(a.bias)
    rows = labels.shape[0]
    logprobs, ref_logprobs, kl = torch.zeros(rows), torch.zeros(rows), torch.zeros(rows if a.exact_kl else 0)
    native.policy_reference_logprobs(
        _scoring(hidden, a.weight, labels, bias, a.temperature, a.softcap),
        ref_hidden=ref_hidden.data_ptr(),
        ref_hidden_stride=ref_hidden.stride(0),
        ref_weight=ref_weight.data_ptr(),
        ref_weight_stride=ref_weight.stride(0),
        logprobs=logprobs.data_ptr(),
        ref_logprobs=ref_logprobs.data_ptr(),
        kl=kl.data_ptr() if a.exact_kl else 0,
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
        bias=address(bias),
        labels=labels.data_ptr(),
        rows=hidden.shape[0],
        vocabulary=weight.shape[0],
        hidden_size=hidden.shape[1],
        temperature=temperature,
        softcap=softcap or 0.0,
        bf16=hidden.dtype == torch.bfloat16,
        level=extension.LEVEL,
        threads=torch.get_num_threads(),
    )


def _scores(logprobs: Tensor, entropy: Tensor | None, statistics: Tensor) -> dict[str, int]:
    """The columns by address: the caller keeps the tensors alive."""
    return {
        "logprobs": logprobs.data_ptr(),
        "entropy": address(entropy),
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
