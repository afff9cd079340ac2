"""`Rollout`: one batch of sampled sequences, packed, with the per-token columns that PPO fills and reads.

Slots are the positions that the loss reads: one for each response token, and with `score_at="eos+1"` one more for the
state after EOS where the response is shorter than the budget. Slot t of a sequence with P prompt tokens is read at
index P-1+t of that sequence. Nothing is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Literal

import torch
from torch import Tensor

from rlhf_fast.model.packed import Packed
from rlhf_fast.runtime.distributed import gather, rank, world_size
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.phases import holds
from rlhf_kernels import IGNORED
from rlhf_kernels.checks import to_device

ScoreAt = Literal["eos", "eos+1"]
ALL = range(-1, -1)
COLUMNS = ("logprobs", "ref_logprobs", "kl", "values", "rewards", "advantages", "returns")


@dataclass
class Rollout:
    """B sequences with N tokens and T slots in all.

    The columns are allocated here, all 0, and filled in place: by scoring, shaping and estimating.
    """

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
    ref_hidden: Tensor | None = None  # (T, H) the reference's states, where the critic reads them
    own: range = ALL  # the sequences of this process, where others came by `gather`

    # on the host, so that micro-batches are cut without asking the device: B+1 offsets of tokens, slots, actions
    token_offsets: list[int] = field(default_factory=list)
    slot_offsets: list[int] = field(default_factory=list)
    action_offsets: list[int] = field(default_factory=list)

    # columns, each (T,) f32
    logprobs: Tensor = field(init=False)  # scoring: of the policy before the update; 0 in an eos+1 slot
    ref_logprobs: Tensor = field(init=False)  # of the reference; 0 in an eos+1 slot
    kl: Tensor = field(init=False)  # the estimate of the KL between them; 0 in an eos+1 slot
    values: Tensor = field(init=False)  # the critic's
    rewards: Tensor = field(init=False)  # shaping: -kl_coef * kl, plus the score at its slot
    advantages: Tensor = field(init=False)  # estimating: whitened
    returns: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.own = range(len(self)) if self.own is ALL else self.own
        for name in COLUMNS:
            setattr(self, name, torch.zeros(self.labels.shape, device=self.labels.device))
        if not self.token_offsets:
            actions = torch.cat([self.labels.new_zeros(1), self.action_mask.cumsum(0)])[self.cu_responses.long()]
            offsets = torch.stack([self.cu_seqlens.long(), self.cu_responses.long(), actions])
            self.token_offsets, self.slot_offsets, self.action_offsets = offsets.tolist()
        holds("buffers", (value for value in vars(self).values() if isinstance(value, Tensor)))

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
        _check_responses(prompts, responses, finished, budget)
        tokens: list[int] = []
        cu_seqlens, cu_responses, cu_actions = [0], [0], [0]
        slot_rows: list[int] = []
        labels: list[int] = []
        score_index: list[int] = []
        sampled: list[float] = []
        for b, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            extra = score_at == "eos+1" and 0 < len(response) < budget
            first = len(tokens) + len(prompt) - 1
            slots = len(response) + extra
            slot_rows += range(first, first + slots)
            labels += response + [IGNORED] * extra
            sampled += (logprobs[b] if logprobs else [0.0] * len(response)) + [0.0] * extra
            tokens += prompt + response
            cu_seqlens.append(len(tokens))
            cu_responses.append(cu_responses[-1] + slots)
            cu_actions.append(cu_actions[-1] + len(response))
            score_index.append(cu_responses[-1] - 1 if slots else -1)
        done = to_device(torch.tensor(finished, dtype=torch.bool), device)
        batch = range(len(prompts))

        def integers(values: list[int], dtype: torch.dtype = torch.int64) -> Tensor:
            return to_device(torch.tensor(values, dtype=dtype), device)

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
            sampled_logprobs=to_device(torch.tensor(sampled), device) if logprobs else None,
            token_offsets=cu_seqlens,
            slot_offsets=cu_responses,
            action_offsets=cu_actions,
        )

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @property
    def action_mask(self) -> Tensor:
        """(T,) bool: slots of response tokens. All slots hold a value, so the value mask is all of them."""
        return self.labels != IGNORED

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        return [stop - start for start, stop in pairwise(self.token_offsets)]

    def counts(self, sequences: list[int]) -> tuple[int, int]:
        """How many actions, and how many slots, these sequences have."""
        actions, slots = self.action_offsets, self.slot_offsets
        return sum(actions[b + 1] - actions[b] for b in sequences), sum(slots[b + 1] - slots[b] for b in sequences)

    def responses(self) -> list[list[int]]:
        tokens, cu, prompt = self.tokens.tolist(), self.token_offsets, self.prompt_lengths.tolist()
        return [tokens[cu[b] + prompt[b] : cu[b + 1]] for b in range(len(self))]

    def sequences(self) -> list[list[int]]:
        tokens, cu = self.tokens.tolist(), self.token_offsets
        return [tokens[cu[b] : cu[b + 1]] for b in range(len(self))]

    def select(self, sequences: list[int]) -> tuple[Packed, Tensor]:
        """The given sequences packed, and the (R,) int64 indices of their slots in the columns, in the same order.

        Their numbers among this process's own tell which trunk states are theirs."""
        cu, slots, device = self.token_offsets, self.slot_offsets, self.tokens.device
        offsets = [0, *accumulate(cu[b + 1] - cu[b] for b in sequences)]
        token_index = to_device(torch.cat([torch.arange(cu[b], cu[b + 1]) for b in sequences]), device)
        slot_index = to_device(torch.cat([torch.arange(slots[b], slots[b + 1]) for b in sequences]), device)
        moved = [torch.full((slots[b + 1] - slots[b],), offsets[i] - cu[b]) for i, b in enumerate(sequences)]
        rows = self.slot_rows[slot_index] + to_device(torch.cat(moved), device)
        ref_hidden = None if self.ref_hidden is None else self.ref_hidden[slot_index]
        packed = Packed(
            self.tokens[token_index], offsets, rows, self.labels[slot_index], self.counts(sequences)[0],
            ref_hidden=ref_hidden,
            numbers=[b - self.own.start for b in sequences] if all(b in self.own for b in sequences) else None,
        )  # fmt: skip
        return packed, slot_index

    def gather(self) -> Rollout:
        """The rollout of all processes, in the order of their ranks, from the part that each has sampled and scored;
        itself in a single process.

        `ref_hidden` is not exchanged: its rows are 0 but for the slots of this process, the only ones that it reads.
        """
        if world_size() == 1:
            return self
        counts = gather(torch.tensor([[len(self), len(self.tokens), len(self.labels)]]))  # (processes, 3)
        sequences, tokens, slots = counts[: rank()].sum(0).tolist()  # of the processes before
        ref_hidden = None
        if self.ref_hidden is not None:
            ref_hidden = self.ref_hidden.new_zeros(int(counts[:, 2].sum()), self.ref_hidden.shape[1])
            ref_hidden[slots : slots + len(self.labels)] = self.ref_hidden
        whole = Rollout(
            tokens=gather(self.tokens),
            cu_seqlens=_gather_offsets(self.cu_seqlens),
            prompt_lengths=gather(self.prompt_lengths),
            cu_responses=_gather_offsets(self.cu_responses),
            slot_rows=gather(self.slot_rows + tokens),
            labels=gather(self.labels),
            score_index=gather(torch.where(self.score_index < 0, self.score_index, self.score_index + slots)),
            finished=gather(self.finished),
            truncated=gather(self.truncated),
            prompt_rows=gather(self.prompt_rows),
            seeds=gather(self.seeds),
            sampled_logprobs=None if self.sampled_logprobs is None else gather(self.sampled_logprobs),
            bootstrap=None if self.bootstrap is None else gather(self.bootstrap),
            ref_hidden=ref_hidden,
            own=range(sequences, sequences + len(self)),
        )
        for name in COLUMNS:
            setattr(whole, name, gather(getattr(self, name)))
        return whole


def _check_responses(prompts: list[list[int]], responses: list[list[int]], finished: list[bool], budget: int) -> None:
    counts = {len(prompts), len(responses), len(finished)}
    if len(counts) != 1 or not all(prompts) or any(len(r) > budget for r in responses):
        raise UsageError(
            f"got {len(prompts)} prompts, {len(responses)} responses and {len(finished)} finished flags; expected as "
            f"many of each, no empty prompt, and responses of at most {budget} tokens."
        )


def _gather_offsets(own: Tensor) -> Tensor:
    """Of the lengths of all processes, from the offsets (B+1,) of this one."""
    lengths = gather(own.diff())
    return torch.cat([own.new_zeros(1), lengths.cumsum(0)]).to(own.dtype)


def distinct_n(responses: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams over all n-grams of the responses (Li et al. 2016); NaN where no response has n tokens."""
    grams = [tuple(r[i : i + n]) for r in responses for i in range(len(r) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def repetition(responses: Sequence[Sequence[int]]) -> float:
    """Share of 3-grams that occurred before in the same response, mean over the responses that have any (else 0)."""
    shares = []
    for response in responses:
        grams = [tuple(response[i : i + 3]) for i in range(len(response) - 2)]
        if grams:
            shares.append(1 - len(set(grams)) / len(grams))
    return sum(shares) / len(shares) if shares else 0.0
