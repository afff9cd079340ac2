"""Generation in the training process with the training weights: continuous batching over a key-value cache.

Prompts are prefilled packed, within a token budget; each step decodes one token for every live sequence. A finished
sequence leaves at once, the last live one moves into its row, and waiting prompts are prefilled into the free rows.
Decoding reads a packed copy of the weights where the model has one (see `rlhf_fast.model.packed_decoder`), made here
and gone with the rollout.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf_fast.model.attention import DecodeStep, KVCache, PackedSequences
from rlhf_fast.model.packed_decoder import decoder
from rlhf_fast.model.roles import Policy
from rlhf_fast.model.work import tell_head
from rlhf_fast.rollout.sampling import Sampling, choose
from rlhf_fast.runtime.errors import UsageError
from rlhf_kernels import sample, sample_is_native


@dataclass
class Response:
    """Sampled tokens (the stop token included when `finished`), their log-probs at sampling, and how it ended."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False


@dataclass
class _Live:
    index: int  # into prompts
    length: int  # tokens in the cache


@torch.no_grad()
def generate(
    policy: Policy,
    prompts: list[list[int]],
    sampling: Sampling,
    *,
    seeds: list[int],
    max_batch: int = 32,
    max_tokens: int = 2048,
) -> list[Response]:
    """One response for each prompt; response i depends on its prompt, seeds[i] and the weights, not on the others.

    max_batch: sequences decoded together; max_tokens: prompt tokens prefilled in one forward.
    Raises `UsageError` for an empty prompt, and for one that leaves no room in the model's context.
    """
    _check(policy, prompts, sampling)
    responses = [Response() for _ in prompts]
    if prompts:
        _Engine(policy, prompts, sampling, seeds, responses, max_batch, max_tokens).run()
    return responses


class _Engine:
    def __init__(
        self, policy: Policy, prompts: list[list[int]], sampling: Sampling, seeds: list[int],
        responses: list[Response], max_batch: int, max_tokens: int,
    ) -> None:  # fmt: skip
        self.policy, self.prompts, self.sampling, self.seeds = policy, prompts, sampling, seeds
        self.responses, self.max_tokens = responses, max_tokens
        self.capacity = min(max_batch, len(prompts))
        self.cache = KVCache(self.capacity, max(map(len, prompts)) + sampling.max_new_tokens)
        self.waiting = deque(range(len(prompts)))
        self.live: list[_Live] = []
        self.decode = decoder(policy.model, policy.adapter, self.cache.length)
        weight, bias = policy.model.lm_head
        bias = None if bias is None else bias.float()
        if sampling.restricted or not sample_is_native(weight, bias):  # torch multiplies in fp32: converted once
            weight = weight.float()
        self.weight, self.bias = weight, bias

    def run(self) -> None:
        while self.waiting or self.live:
            while self.waiting and len(self.live) < self.capacity:
                self._admit()
            if self.live:
                self._decode()

    def _admit(self) -> None:
        """Prefill waiting prompts into the free rows, as many as the token budget takes (at least one)."""
        first_row, used, cu = len(self.live), 0, [0]
        admitted: list[int] = []
        while self.waiting and len(self.live) + len(admitted) < self.capacity:
            length = len(self.prompts[self.waiting[0]])
            if admitted and used + length > self.max_tokens:
                break
            admitted.append(self.waiting.popleft())
            used += length
            cu.append(used)
        tokens = torch.tensor([t for i in admitted for t in self.prompts[i]], device=self.policy.model.device)
        sequences = PackedSequences(cu, self.cache, first_row)
        hidden = self.policy.model.prefill(tokens, sequences, self.policy.adapter)
        self.live += [_Live(i, len(self.prompts[i])) for i in admitted]
        self._sample(hidden[torch.tensor(cu[1:], device=tokens.device) - 1], first_row)

    def _decode(self) -> None:
        device = self.policy.model.device
        tokens = torch.tensor([self.responses[live.index].tokens[-1] for live in self.live], device=device)
        lengths = torch.tensor([live.length for live in self.live], device=device)
        step = DecodeStep(self.cache, lengths, max(live.length for live in self.live))
        hidden = self.decode(tokens, step)
        for live in self.live:
            live.length += 1
        self._sample(hidden, 0)

    def _sample(self, hidden: Tensor, first_row: int) -> None:
        """Sample a token for each live row from `first_row` on, record it, and let finished sequences leave."""
        rows = self.live[first_row:]
        steps = [len(self.responses[live.index].tokens) for live in rows]
        seeds = [self.seeds[live.index] for live in rows]
        tokens, logprobs = self._choose(hidden.to(self.weight.dtype), seeds, steps)
        for live, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            response = self.responses[live.index]
            response.tokens.append(token)
            response.logprobs.append(logprob)
            response.finished = token in self.sampling.stop_ids
        for row in reversed(range(first_row, len(self.live))):
            response = self.responses[self.live[row].index]
            if response.finished or len(response.tokens) >= self.sampling.max_new_tokens:
                self._leave(row)

    def _leave(self, row: int) -> None:
        last = self.live.pop()
        if row < len(self.live):
            self.cache.move(len(self.live), row)
            self.live[row] = last

    def _choose(self, hidden: Tensor, seeds: list[int], steps: list[int]) -> tuple[Tensor, Tensor]:
        tell_head(len(hidden), self.weight)
        cap = self.policy.model.softcap
        if not self.sampling.restricted:
            return sample(
                hidden, self.weight, bias=self.bias, softcap=cap, temperature=self.sampling.temperature,
                seeds=torch.tensor(seeds, device=hidden.device), steps=torch.tensor(steps, device=hidden.device),
            )  # fmt: skip
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias)
        return choose(logits if cap is None else torch.tanh(logits / cap) * cap, self.sampling, seeds, steps)


def _check(policy: Policy, prompts: list[list[int]], sampling: Sampling) -> None:
    context = policy.model.max_length
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise UsageError(f"prompt {index} is empty; a response needs at least one token to follow. Remove the row.")
        if context is not None and len(prompt) + sampling.max_new_tokens > context:
            raise UsageError(
                f"prompt {index} has {len(prompt)} tokens and the response up to "
                f"{sampling.max_new_tokens}; the model's "
                f"context is {context}. Shorten the prompt or lower response_length."
            )
