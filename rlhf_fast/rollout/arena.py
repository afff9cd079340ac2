"""`Rollout`: one batch of sampled sequences, packed, with the per-token columns that PPO fills and reads.

Slots are the positions that the loss reads: one for each response token, and with `score_at="eos+1"` one more for the
state after EOS where the response is shorter than the budget. Slot t of a sequence with P prompt tokens is read at
index P-1+t of that sequence. Nothing is padded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from rlhf_fast.model.packed import Packed
from rlhf_fast.runtime.errors import UsageError

ScoreAt = Literal["eos", "eos+1"]


@dataclass
class Rollout:
    """B sequences with N tokens and T slots in all. Columns are written in place by scoring, shaping and GAE."""

    tokens: Tensor  # (N,) int64
    cu_seqlens: Tensor  # (B+1,) int32, offsets into tokens
    prompt_lengths: Tensor  # (B,) int64
    cu_responses: Tensor  # (B+1,) int32, offsets into the slot columns
    slot_rows: Tensor  # (T,) int64, index into tokens whose hidden state the slot reads
    labels: Tensor  # (T,) int64, the response token of the slot; -100 in an eos+1 slot
    score_index: Tensor  # (B,) int64, slot that receives the score; -1 without slots
    finished: Tensor  # (B,) bool, ended by a stop token or a stop string
    truncated: Tensor  # (B,) bool, ran out of budget
    prompt_rows: Tensor  # (B,) int64, row of the dataset
    seeds: Tensor  # (B,) int64, sampling seed
    sampled_logprobs: Tensor | None = None  # (T,) f32, as the engine sampled; 0 in an eos+1 slot
    bootstrap: Tensor | None = None  # (B,) f32, value after a truncated response and 0 after others, where GAE reads it
    columns: dict[str, Tensor] = field(default_factory=dict)  # name -> (T,) f32
    ref_hidden: Tensor | None = None  # (T, H) the reference's states, where the critic reads them

    @classmethod
    def from_responses(
        cls,
        prompts: list[list[int]],
        responses: list[list[int]],
        *,
        finished: list[bool],
        budget: int,
        score_at: ScoreAt = "eos",
        prompt_rows: list[int] | None = None,
        seeds: list[int] | None = None,
        logprobs: list[list[float]] | None = None,
        device: torch.device | str = "cpu",
    ) -> Rollout:
        """Pack prompts and responses (ids; a finished response ends with the token that stopped it).

        A sequence that is not finished counts as truncated. Raises `UsageError` if the lists differ in length or a
        response is longer than `budget`.
        """
        counts = {len(prompts), len(responses), len(finished)}
        if len(counts) != 1 or not all(prompts) or any(len(r) > budget for r in responses):
            raise UsageError(
                f"got {len(prompts)} prompts, {len(responses)} responses and {len(finished)} finished "
                "flags; expected as "
                f"many of each, no empty prompt, and responses of at most {budget} tokens."
            )
        tokens: list[int] = []
        cu_seqlens, cu_responses = [0], [0]
        slot_rows: list[int] = []
        labels: list[int] = []
        score_index: list[int] = []
        sampled: list[float] = []
        for b, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            extra = score_at == "eos+1" and 0 < len(response) < budget
            first = len(tokens) + len(prompt) - 1
            slots = len(response) + extra
            slot_rows += range(first, first + slots)
            labels += response + [-100] * extra
            sampled += (logprobs[b] if logprobs else [0.0] * len(response)) + [0.0] * extra
            tokens += prompt + response
            cu_seqlens.append(len(tokens))
            cu_responses.append(cu_responses[-1] + slots)
            score_index.append(cu_responses[-1] - 1 if slots else -1)
        done = torch.tensor(finished, dtype=torch.bool, device=device)
        batch = range(len(prompts))

        def integers(values: list[int], dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        return cls(
            tokens=integers(tokens),
            cu_seqlens=integers(cu_seqlens, torch.int32),
            prompt_lengths=integers([len(p) for p in prompts]),
            cu_responses=integers(cu_responses, torch.int32),
            slot_rows=integers(slot_rows),
            labels=integers(labels),
            score_index=integers(score_index),
            finished=done,
            truncated=~done,
            prompt_rows=integers(list(prompt_rows if prompt_rows is not None else batch)),
            seeds=integers(list(seeds if seeds is not None else batch)),
            sampled_logprobs=torch.tensor(sampled, device=device) if logprobs else None,
        )

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @property
    def action_mask(self) -> Tensor:
        """(T,) bool: slots of response tokens. All slots hold a value, so the value mask is all of them."""
        return self.labels != -100

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        return self.cu_seqlens.diff().tolist()

    def counts(self, sequences: list[int]) -> tuple[int, int]:
        """How many actions, and how many slots, these sequences have."""
        cu = self.cu_responses.tolist()
        slots = [self.labels[cu[b] : cu[b + 1]] for b in sequences]
        return sum(int((labels != -100).sum()) for labels in slots), sum(map(len, slots))

    def responses(self) -> list[list[int]]:
        tokens, cu, prompt = self.tokens.tolist(), self.cu_seqlens.tolist(), self.prompt_lengths.tolist()
        return [tokens[cu[b] + prompt[b] : cu[b + 1]] for b in range(len(self))]

    def sequences(self) -> list[list[int]]:
        tokens, cu = self.tokens.tolist(), self.cu_seqlens.tolist()
        return [tokens[cu[b] : cu[b + 1]] for b in range(len(self))]

    def select(self, sequences: list[int]) -> tuple[Packed, Tensor]:
        """The given sequences packed, and the (R,) int64 indices of their slots in the columns, in the same order."""
        cu, slots = self.cu_seqlens.tolist(), self.cu_responses.tolist()
        device = self.tokens.device
        offsets, pieces, rows, index = [0], [], [], []
        for b in sequences:
            own = slice(slots[b], slots[b + 1])
            pieces.append(self.tokens[cu[b] : cu[b + 1]])
            rows.append(self.slot_rows[own] - cu[b] + offsets[-1])
            index.append(torch.arange(own.start, own.stop, device=device))
            offsets.append(offsets[-1] + cu[b + 1] - cu[b])
        slot_index = torch.cat(index)
        ref_hidden = None if self.ref_hidden is None else self.ref_hidden[slot_index]
        packed = Packed(torch.cat(pieces), offsets, torch.cat(rows), self.labels[slot_index], ref_hidden=ref_hidden)
        return packed, slot_index
