"""Log-probs of labels from hidden states in plain torch, a chunk of rows at a time.

With gradients on, every chunk is recomputed in the backward pass (`torch.utils.checkpoint`), so that one chunk's logits
are the most that ever exists. The result does not depend on the chunk size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORED = -100  # the label of a row that is not scored
CHUNK_ROWS = 256


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
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    entropy: bool,
    chunk_rows: int = CHUNK_ROWS,
) -> LogProbs:
    """The specification of `rlhf_kernels.linear_logprobs`; arguments are taken as checked."""
    dtype = _accumulation_dtype(hidden, weight)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    rows = (labels != IGNORED).nonzero().squeeze(1)

    def score(chunk: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        all_logprobs = _log_softmax(chunk.to(dtype), weight, bias, temperature, softcap)  # (n, V)
        chosen = all_logprobs.gather(1, targets[:, None]).squeeze(1)
        return chosen, -(all_logprobs.exp() * all_logprobs).sum(1) if entropy else None

    chosen, entropies = [], []
    for chunk_ids in _chunks(rows, chunk_rows):
        args = hidden[chunk_ids], labels[chunk_ids]
        if torch.is_grad_enabled():
            part = checkpoint(score, *args, use_reentrant=False, preserve_rng_state=False)
        else:
            part = score(*args)
        chosen.append(part[0])
        entropies.append(part[1])
    return LogProbs(_scatter(chosen, rows, labels), _scatter(entropies, rows, labels) if entropy else None)


@torch.no_grad()
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
    chunk_rows: int = CHUNK_ROWS,
) -> PolicyReferenceLogProbs:
    """The specification of `rlhf_kernels.policy_reference_logprobs`; arguments are taken as checked."""
    dtype = _accumulation_dtype(hidden, weight)
    bias = None if bias is None else bias.to(dtype)
    weight = weight.to(dtype)
    ref_weight = weight if ref_weight is None else ref_weight.to(dtype)
    rows = (labels != IGNORED).nonzero().squeeze(1)
    chosen, ref_chosen, kl = [], [], []
    for chunk_ids in _chunks(rows, chunk_rows):
        policy = _log_softmax(hidden[chunk_ids].to(dtype), weight, bias, temperature, softcap)  # (n, V)
        ref = _log_softmax(ref_hidden[chunk_ids].to(dtype), ref_weight, bias, temperature, softcap)
        targets = labels[chunk_ids][:, None]
        chosen.append(policy.gather(1, targets).squeeze(1))
        ref_chosen.append(ref.gather(1, targets).squeeze(1))
        if exact_kl:
            kl.append((policy.exp() * (policy - ref)).sum(1))
    return PolicyReferenceLogProbs(
        _scatter(chosen, rows, labels),
        _scatter(ref_chosen, rows, labels),
        _scatter(kl, rows, labels) if exact_kl else None,
    )


def _log_softmax(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, softcap: float | None
) -> Tensor:
    """log softmax(softcap(h W^T + b) / temperature) in the operands' own precision, which autocast may not lower."""
    with torch.autocast(hidden.device.type, enabled=False):
        logits = F.linear(hidden, weight, bias)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return F.log_softmax(logits / temperature, dim=1)


def _accumulation_dtype(*operands: Tensor) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in operands) else torch.float32


def _chunks(rows: Tensor, chunk_rows: int) -> Iterator[Tensor]:
    """Pieces of `rows`; a single empty piece where there is none, so that the result stays part of the graph."""
    return iter(rows.split(chunk_rows)) if rows.numel() else iter([rows])


def _scatter(parts: list[Tensor], rows: Tensor, labels: Tensor) -> Tensor:
    """Chunks of the scored rows -> (N,), zero at the skipped ones."""
    scored = torch.cat(parts)
    return scored.new_zeros(labels.shape[0]).index_copy(0, rows, scored)
