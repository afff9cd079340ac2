"""Log-probs of labels from hidden states and their gradients in plain torch, a chunk of rows at a time.

One chunk's logits are the most that ever exists; the gradients compute them again. No result depends on the chunk size,
but for rounding in the sums of the gradients of weight and bias.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rlhf_kernels.precision import accumulation_dtype

IGNORED = -100  # the label of a row that is not scored
CHUNK_ROWS = 256


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
    weight_gradient: bool = False,  # plays no part: the backward pass gives it
    chunk_rows: int = CHUNK_ROWS,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The specification of `rlhf_kernels.linear_logprobs`; arguments are taken as checked.

    Returns log-probs (N,), entropies (N,) or (0,), statistics (2, N): the largest logit of a row and
    log sum e^(z - largest), and, where asked for, directions (N, H): the gradient of each row's log-prob by its hidden
    state; else (0, H).
    """
    n, (_, h), dtype = hidden.shape[0], weight.shape, accumulation_dtype(hidden, weight)
    logprobs, entropies = (torch.zeros(size, dtype=dtype, device=hidden.device) for size in (n, n if entropy else 0))
    statistics = torch.zeros(2, n, dtype=dtype, device=hidden.device)
    gradients = torch.zeros(n if directions else 0, h, dtype=dtype, device=hidden.device)
    project = Projection(weight, bias, temperature, softcap, dtype)
    for rows in _chunks(labels, chunk_rows):
        logits, slope = project(hidden[rows])
        statistics[:, rows] = torch.stack(_statistics(logits))
        all_logprobs = logits - statistics[0, rows, None] - statistics[1, rows, None]  # (n, V)
        logprobs[rows] = all_logprobs.gather(1, labels[rows, None]).squeeze(1)
        if entropy:
            entropies[rows] = -(all_logprobs.exp() * all_logprobs).sum(1)
        if directions:
            gradients[rows] = _product(_d_logprob(all_logprobs, labels[rows]) * slope, project.weight)
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
    chunk_rows: int = CHUNK_ROWS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden (N, H), weight (V, H) and bias (V,); those not asked for are (0,).

    d log p_y / dz_v = 1[v = y] - p_v and d entropy / dz_v = -p_v (log p_v + entropy).
    """
    dtype = accumulation_dtype(hidden, weight)
    project = Projection(weight, bias, temperature, softcap, dtype)
    d_hidden = torch.zeros_like(hidden)
    d_weight = torch.zeros(weight.shape if weight_gradient else 0, dtype=dtype, device=hidden.device)
    d_bias = torch.zeros(weight.shape[0] if bias_gradient else 0, dtype=dtype, device=hidden.device)
    for rows in _chunks(labels, chunk_rows):
        logits, slope = project(hidden[rows])
        all_logprobs = logits - statistics[0, rows, None] - statistics[1, rows, None]  # (n, V)
        d_logits = torch.zeros_like(all_logprobs)
        if d_logprobs is not None:
            d_logits += d_logprobs[rows, None] * _d_logprob(all_logprobs, labels[rows])
        if d_entropy is not None:
            d_logits -= d_entropy[rows, None] * all_logprobs.exp() * (all_logprobs + entropy[rows, None])
        d_logits *= slope
        d_hidden[rows] = _product(d_logits, project.weight).to(hidden.dtype)
        if weight_gradient:
            d_weight += _product(d_logits.t(), hidden[rows].to(dtype))
        if bias_gradient:
            d_bias += d_logits.sum(0)
    return d_hidden, d_weight.to(weight.dtype), d_bias if bias is None else d_bias.to(bias.dtype)


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
    chunk_rows: int = CHUNK_ROWS,
) -> tuple[Tensor, Tensor, Tensor]:
    """The specification of `rlhf_kernels.policy_reference_logprobs`; the last result is (0,) without `exact_kl`."""
    dtype, n = accumulation_dtype(hidden, weight), hidden.shape[0]
    logprobs, ref_logprobs, kl = (
        torch.zeros(size, dtype=dtype, device=hidden.device) for size in (n, n, n if exact_kl else 0)
    )
    project = Projection(weight, bias, temperature, softcap, dtype)
    ref_project = project if ref_weight is None else Projection(ref_weight, bias, temperature, softcap, dtype)
    for rows in _chunks(labels, chunk_rows):
        policy = torch.log_softmax(project(hidden[rows])[0], 1)  # (n, V)
        ref = torch.log_softmax(ref_project(ref_hidden[rows])[0], 1)
        logprobs[rows] = policy.gather(1, labels[rows, None]).squeeze(1)
        ref_logprobs[rows] = ref.gather(1, labels[rows, None]).squeeze(1)
        if exact_kl:
            kl[rows] = (policy.exp() * (policy - ref)).sum(1)
    return logprobs, ref_logprobs, kl


class Projection:
    """Hidden states (n, H) -> logits z (n, V) = softcap(h W^T + b) / temperature and their slope dz / d(h W^T)."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, temperature: float, softcap: float | None, dtype: torch.dtype
    ) -> None:
        self.weight = weight.to(dtype)
        self.bias = None if bias is None else bias.to(dtype)
        self.temperature, self.softcap = temperature, softcap

    def __call__(self, hidden: Tensor) -> tuple[Tensor, Tensor | float]:
        logits = _product(hidden.to(self.weight.dtype), self.weight.t())
        if self.bias is not None:
            logits = logits + self.bias
        if self.softcap is None:
            return logits / self.temperature, 1 / self.temperature
        share = torch.tanh(logits / self.softcap)
        return self.softcap * share / self.temperature, (1 - share.square()) / self.temperature


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b in the operands' own precision, which autocast may not lower."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def _statistics(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit of each row, and log sum e^(z - largest)."""
    largest = logits.amax(1)
    return largest, (logits - largest[:, None]).exp().sum(1).log()


def _d_logprob(all_logprobs: Tensor, labels: Tensor) -> Tensor:
    """d log p_y / dz (n, V): -p, and at the label 1 - p_y, taken from log p_y so that nothing cancels."""
    chosen = all_logprobs.gather(1, labels[:, None])
    return (-all_logprobs.exp()).scatter(1, labels[:, None], -torch.expm1(chosen))


def _chunks(labels: Tensor, chunk_rows: int) -> Iterator[Tensor]:
    """The scored rows, `chunk_rows` at a time."""
    rows = (labels != IGNORED).nonzero().squeeze(1)
    return iter(rows.split(chunk_rows)) if rows.numel() else iter(())
