"""The rollout of all processes from the part that each has sampled and scored."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_fast.rollout.arena import Rollout
from rlhf_fast.runtime.distributed import gather, rank, world_size


def gather_rollout(own: Rollout) -> Rollout:
    """Sequences and columns of all processes, in the order of their ranks; `own` itself in a single process.

    `ref_hidden` is not exchanged: its rows are 0 but for the slots of this process, the only ones that it reads.
    """
    if world_size() == 1:
        return own
    counts = gather(torch.tensor([[len(own.tokens), len(own.labels)]]))  # (processes, 2)
    tokens, slots = counts[: rank()].sum(0).tolist()  # of the processes before
    score_index = torch.where(own.score_index < 0, own.score_index, own.score_index + slots)
    return Rollout(
        tokens=gather(own.tokens),
        cu_seqlens=_offsets(own.cu_seqlens),
        prompt_lengths=gather(own.prompt_lengths),
        cu_responses=_offsets(own.cu_responses),
        slot_rows=gather(own.slot_rows + tokens),
        labels=gather(own.labels),
        score_index=gather(score_index),
        finished=gather(own.finished),
        truncated=gather(own.truncated),
        prompt_rows=gather(own.prompt_rows),
        seeds=gather(own.seeds),
        sampled_logprobs=_each(own.sampled_logprobs),
        bootstrap=_each(own.bootstrap),
        columns={name: gather(column) for name, column in own.columns.items()},
        ref_hidden=_placed(own.ref_hidden, slots, int(counts[:, 1].sum())),
    )


def _each(column: Tensor | None) -> Tensor | None:
    return None if column is None else gather(column)


def _offsets(own: Tensor) -> Tensor:
    """Of the lengths of all processes, from the offsets (B+1,) of this one."""
    lengths = gather(own.diff())
    return torch.cat([own.new_zeros(1), lengths.cumsum(0)]).to(own.dtype)


def _placed(own: Tensor | None, first: int, slots: int) -> Tensor | None:
    if own is None:
        return None
    out = own.new_zeros(slots, own.shape[1])
    out[first : first + len(own)] = own
    return out
