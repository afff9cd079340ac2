"""Sampling in C++: a tile of float32 logits at a time, which joins the softmax's statistics and the race of the draw.

A row's result depends on neither the other rows nor the number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf_kernels.extension import native
from rlhf_kernels.logprobs import native as logprobs_backend
from rlhf_kernels.logprobs.native import LEVEL


def supports(args: Mapping[str, Any]) -> str | None:
    """Why the extension cannot take these arguments, or None: it reads weights as `linear_logprobs` does."""
    if args["weight"].shape[0] >= 1 << 31:
        return f"the vocabulary has {args['weight'].shape[0]} entries, and it counts them in 31 bits"
    return logprobs_backend.supports(args)


def sample(
    *,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    temperature: float,
    seeds: Tensor,
    steps: Tensor,
    level: str = LEVEL,
) -> tuple[Tensor, Tensor]:
    """As the reference; arguments are taken as checked and supported."""
    tokens = torch.empty(hidden.shape[0], dtype=torch.int64)
    logprobs = torch.empty(hidden.shape[0])
    hidden, seeds, steps = hidden.contiguous(), seeds.contiguous(), steps.contiguous()
    bias = None if bias is None else bias.float().contiguous()
    greedy = temperature == 0
    native.sample(
        hidden=hidden.data_ptr(),
        hidden_stride=hidden.stride(0),
        weight=weight.data_ptr(),
        weight_stride=weight.stride(0),
        bias=0 if bias is None else bias.data_ptr(),
        seeds=0 if greedy else seeds.data_ptr(),
        steps=0 if greedy else steps.data_ptr(),
        rows=hidden.shape[0],
        vocabulary=weight.shape[0],
        hidden_size=hidden.shape[1],
        temperature=1.0 if greedy else temperature,
        softcap=softcap or 0.0,
        bf16=hidden.dtype == torch.bfloat16,
        level=level,
        tokens=tokens.data_ptr(),
        logprobs=logprobs.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return tokens, logprobs
