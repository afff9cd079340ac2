"""Log-probs of labels from hidden states and their gradients in plain torch, a chunk of rows at a time.

One chunk's logits are the most that ever exists; the gradients compute them again. No result depends on the chunk size,
but for rounding in the sums of the gradients of weight and bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_kernels.checks import accumulation_dtype

IGNORED = -100  # the label of a row that is not scored
CHUNK_ROWS = 256


class Arguments(NamedTuple):
    """Of `linear_logprobs`. Results, all in the precision of the sums:

    logprobs (N,), entropy (N,) or (0,), statistics (2, N): a row's largest logit and log sum e^(z - largest), and
    directions (N, H) or (0, H): the gradient of each row's log-prob by its hidden state.
    """

    hidden: Tensor  # (N, H)
    weight: Tensor  # (V, H)
    labels: Tensor  # (N,)
    bias: Tensor | None  # (V,)
    temperature: float
    softcap: float | None
    entropy: bool
    directions: bool
    weight_gradient: bool  # of weight or bias, which the backward pass has to give
    scored: int | None  # how many labels are not -100, where that is known without asking the device


class BackwardArguments(NamedTuple):
    """What the forward pass took and gave, and the gradients of what it gave; entropy is (0,) only where d_entropy is
    None.

    Results: the gradients of hidden (N, H), weight (V, H) and bias (V,), each in the dtype of what it is the gradient
    of; those not asked for are (0,).
    """

    hidden: Tensor
    weight: Tensor
    labels: Tensor
    bias: Tensor | None
    temperature: float
    softcap: float | None
    logprobs: Tensor
    entropy: Tensor
    statistics: Tensor
    d_logprobs: Tensor | None
    d_entropy: Tensor | None
    weight_gradient: bool
    bias_gradient: bool
    scored: int | None


class PairArguments(NamedTuple):
    """Of `policy_reference_logprobs`. Results: log-probs (N,) of policy and reference, and KL (N,) or (0,)."""

    hidden: Tensor  # (N, H)
    ref_hidden: Tensor  # (N, H)
    weight: Tensor  # (V, H)
    labels: Tensor  # (N,)
    ref_weight: Tensor | None  # (V, H)
    bias: Tensor | None  # (V,)
    temperature: float
    softcap: float | None
    exact_kl: bool
    scored: int | None


def linear_logprobs(a: Arguments, *, chunk_rows: int = CHUNK_ROWS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The specification of `rlhf_kernels.linear_logprobs`."""
    n, (_, h), dtype = a.hidden.shape[0], a.weight.shape, accumulation_dtype(a.hidden, a.weight)
    on = a.hidden.device
    logprobs, entropies = (torch.zeros(size, dtype=dtype, device=on) for size in (n, n if a.entropy else 0))
    statistics = torch.zeros(2, n, dtype=dtype, device=on)
    directions = torch.zeros(n if a.directions else 0, h, dtype=dtype, device=on)
    project = Projection(a.weight, a.bias, a.temperature, a.softcap, dtype)
    for rows in _chunks(a, chunk_rows):
        logits, slope = project(a.hidden[rows])
        statistics[:, rows] = torch.stack(_statistics(logits))
        all_logprobs = logits - statistics[0, rows, None] - statistics[1, rows, None]  # (n, V)
        logprobs[rows] = all_logprobs.gather(1, a.labels[rows, None]).squeeze(1)
        if a.entropy:
            entropies[rows] = -(all_logprobs.exp() * all_logprobs).sum(1)
        if a.directions:
            directions[rows] = _product(_d_logprob(all_logprobs, a.labels[rows]) * slope, project.weight)
    return logprobs, entropies, statistics, directions


def linear_logprobs_backward(a: BackwardArguments, *, chunk_rows: int = CHUNK_ROWS) -> tuple[Tensor, Tensor, Tensor]:
    """d log p_y / dz_v = 1[v = y] - p_v and d entropy / dz_v = -p_v (log p_v + entropy)."""
    dtype, on, vocabulary = accumulation_dtype(a.hidden, a.weight), a.hidden.device, a.weight.shape[0]
    project = Projection(a.weight, a.bias, a.temperature, a.softcap, dtype)
    d_hidden = torch.zeros_like(a.hidden)
    d_weight = torch.zeros(a.weight.shape if a.weight_gradient else 0, dtype=dtype, device=on)
    d_bias = torch.zeros(vocabulary if a.bias_gradient else 0, dtype=dtype, device=on)
    for rows in _chunks(a, chunk_rows):
        logits, slope = project(a.hidden[rows])
        all_logprobs = logits - a.statistics[0, rows, None] - a.statistics[1, rows, None]  # (n, V)
        d_logits = torch.zeros_like(all_logprobs)
        if a.d_logprobs is not None:
            d_logits += a.d_logprobs[rows, None] * _d_logprob(all_logprobs, a.labels[rows])
        if a.d_entropy is not None:
            d_logits -= a.d_entropy[rows, None] * all_logprobs.exp() * (all_logprobs + a.entropy[rows, None])
        d_logits *= slope
        d_hidden[rows] = _product(d_logits, project.weight).to(a.hidden.dtype)
        if a.weight_gradient:
            d_weight += _product(d_logits.t(), a.hidden[rows].to(dtype))
        if a.bias_gradient:
            d_bias += d_logits.sum(0)
    return d_hidden, d_weight.to(a.weight.dtype), d_bias if a.bias is None else d_bias.to(a.bias.dtype)


def policy_reference_logprobs(a: PairArguments, *, chunk_rows: int = CHUNK_ROWS) -> tuple[Tensor, Tensor, Tensor]:
    """The specification of `rlhf_kernels.policy_reference_logprobs`."""
    dtype, n = accumulation_dtype(a.hidden, a.weight), a.hidden.shape[0]
    logprobs, ref_logprobs, kl = (
        torch.zeros(size, dtype=dtype, device=a.hidden.device) for size in (n, n, n if a.exact_kl else 0)
    )
    project = Projection(a.weight, a.bias, a.temperature, a.softcap, dtype)
    ref_project = project
    if a.ref_weight is not None:
        ref_project = Projection(a.ref_weight, a.bias, a.temperature, a.softcap, dtype)
    for rows in _chunks(a, chunk_rows):
        policy = torch.log_softmax(project(a.hidden[rows])[0], 1)  # (n, V)
        ref = torch.log_softmax(ref_project(a.ref_hidden[rows])[0], 1)
        logprobs[rows] = policy.gather(1, a.labels[rows, None]).squeeze(1)
        ref_logprobs[rows] = ref.gather(1, a.labels[rows, None]).squeeze(1)
        if a.exact_kl:
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


def scored_rows(labels: Tensor, count: int | None) -> Tensor:
    """(n,) int64: the rows with a label, in order. Waits for the device unless `count` says how many there are."""
    if count is None:
        return (labels != IGNORED).nonzero().squeeze(1)
    return (labels == IGNORED).byte().argsort(stable=True)[:count]


def _chunks(a: Arguments | BackwardArguments | PairArguments, chunk_rows: int) -> Iterator[Tensor]:
    """The scored rows, `chunk_rows` at a time."""
    rows = scored_rows(a.labels, a.scored)
    return iter(rows.split(chunk_rows)) if rows.numel() else iter(())
