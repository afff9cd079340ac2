"""Sampling on a GPU: one product into float32 logits, then one launch. Nothing waits for the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf_kernels.logprobs import triton as logprobs_backend
from rlhf_kernels.logprobs.triton_chunks import product


def supports(args: Mapping[str, Any]) -> str | None:
    """Why Triton cannot take these arguments, or None: it reads weights as `linear_logprobs` does."""
    return logprobs_backend.supports(args)


@torch.no_grad()
def sample(
    *,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    temperature: float,
    seeds: Tensor,
    steps: Tensor,
) -> tuple[Tensor, Tensor]:
    """As the reference; arguments are taken as checked and supported. The logits (N, V) float32 exist at once."""
    from rlhf_kernels.sample import triton_kernels as kernels

    rows, greedy = hidden.shape[0], temperature == 0
    tokens, logprobs = seeds.new_empty(rows), hidden.new_empty(rows, dtype=torch.float32)
    if rows == 0:
        return tokens, logprobs
    with torch.autocast(hidden.device.type, enabled=False):
        u = product(hidden, weight.t())
    kernels.sample(bias=bias is not None, softcap=softcap is not None, greedy=greedy).launch(
        (rows,),
        u=u,
        bias=None if bias is None else bias.float().contiguous(),
        seeds=None if greedy else seeds.contiguous(),
        steps=None if greedy else steps.contiguous(),
        tokens=tokens,
        logprobs=logprobs,
        vocabulary=u.shape[1],
        stride=u.stride(0),
        inverse_temperature=1.0 if greedy else 1 / temperature,
        softcap=softcap,
    )
    return tokens, logprobs
