"""Generation in the training process with the training weights: continuous batching over a key-value cache.

Prompts are prefilled packed, within a token budget; each step decodes one token for every live sequence. A finished
sequence leaves when its tokens are read (on a CPU after each step, on a GPU after a few), the last live one moves into
its row, and waiting requests are admitted to the free rows. A
prompt that a live row holds already is not prefilled again: its keys and values are copied.
Decoding reads a packed copy of the weights where the model has one (see `rlhf_fast.model.packed_decoder`), made here
and gone with the rollout.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate, chain

import torch
from torch import Tensor

from rlhf_fast.model.attention import DecodeStep, KVCache, PackedSequences
from rlhf_fast.model.packed_decoder import decoder, unserved
from rlhf_fast.model.roles import Policy
from rlhf_fast.model.sharding import gathered, layer_bytes
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.model.work import tell_forward, tell_head
from rlhf_fast.rollout.sampling import Sampling
from rlhf_fast.rollout.step import UNREAD, Rows, Stepper
from rlhf_fast.runtime.distributed import gather
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.interrupt import stop_if_asked
from rlhf_fast.runtime.memory import free_bytes
from rlhf_fast.runtime.phases import at, holds
from rlhf_kernels import Sampler


@dataclass
class Response:
    """Sampled tokens, their log-probs at sampling, and how it ended.

    finished: by its last token, a stop token or one that completes a stop string. Else it ran to its limit.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False


@torch.no_grad()
def generate(
    policy: Policy,
    prompts: list[list[int]],
    sampling: Sampling,
    *,
    seeds: list[int],
    max_batch: int = 32,
    max_tokens: int = 2048,
    max_kv_cache_gb: float | None = None,
) -> list[Response]:
    """One response for each prompt; response i depends on its prompt, seeds[i] and the weights, not on the others.

    max_batch: sequences decoded together, or fewer where the key-value cache would exceed `max_kv_cache_gb` (None: half
    of the free memory); max_tokens: prompt tokens prefilled in one forward. Equal prompts are prefilled together.
    Raises `UsageError` for an empty prompt, for one that leaves no room in the model's context, and for a cache that
    is not allowed one row.
    """
    with gathered(policy.model):  # also for no prompts: the others wait
        if not prompts:
            return []
        engine = Engine(policy, prompts, sampling, seeds, max_batch, max_tokens, max_kv_cache_gb)
        engine.run()
        return engine.responses


class Engine:
    """A rollout's state: rows 0..B-1 of the cache and of `rows` are the live requests, `requests` says which.

    ends (capacity, H): the state of the prompt's last token, from which every response to that prompt starts.
    unread: steps between two looks at the tokens; by the device where it is None.
    """

    def __init__(
        self, policy: Policy, prompts: list[list[int]], sampling: Sampling, seeds: list[int],
        max_batch: int, max_tokens: int, max_kv_cache_gb: float | None = None, *, unread: int | None = None,
    ) -> None:  # fmt: skip
        model = policy.model
        self.policy, self.prompts, self.sampling, self.max_tokens = policy, prompts, sampling, max_tokens
        self.limits = sampling.limits(prompts, model.generation_length)
        self.request_seeds, self.responses = seeds, [Response() for _ in prompts]
        length = max(len(prompt) + limit for prompt, limit in zip(prompts, self.limits, strict=True))
        self.decode = decoder(model, policy.adapter, length)
        self.capacity = rows_that_fit(model, length, min(max_batch, len(prompts)), max_kv_cache_gb)
        self.cache = KVCache(self.capacity, length)
        firsts: dict[tuple[int, ...], int] = {}
        self.same = [firsts.setdefault(tuple(prompt), i) for i, prompt in enumerate(prompts)]  # first equal prompt
        self.waiting = deque(range(len(prompts)))
        self.requests: list[int] = []
        weight, bias = model.lm_head
        self.ends = torch.empty(self.capacity, weight.shape[1], dtype=model.dtype, device=model.device)
        self.sampler = Sampler(
            weight, bias, softcap=model.softcap,
            temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p,
        )  # fmt: skip
        if self.sampler.weight is not weight:
            holds("packed weights", [self.sampler.weight])
        on_gpu = model.device.type == "cuda"
        self.unread = unread or (UNREAD if on_gpu else 1)
        self.rows = Rows(self.capacity, self.unread, sampling.stop_ids, model.device)
        self.stepper = Stepper(self.rows, refused=None if on_gpu else f"it runs on {model.device}")

    def run(self) -> None:
        on_gpu = self.ends.is_cuda  # the packed decoder of a CPU has adapters of its own
        with self.policy.model.routing.keep_factors() if on_gpu else nullcontext():
            while self.waiting or self.requests:
                stop_if_asked()
                while self.waiting and len(self.requests) < self.capacity:
                    self._admit()
                if self.requests:
                    self._decode()

    def _admit(self) -> None:
        """Give free rows to waiting requests and sample their first tokens."""
        at("rollout prefill")
        first = len(self.requests)
        new, sharing = self._next()
        if new:
            self.ends[first : first + len(new)] = self.prefill(new, first)
        self.requests += new
        row_of = {self.same[request]: row for row, request in enumerate(self.requests)}
        for request in sharing:
            source, target = row_of[self.same[request]], len(self.requests)
            self.cache.copy(source, target, len(self.prompts[request]))
            self.ends[target] = self.ends[source]
            self.requests.append(request)
        rows, added = slice(first, len(self.requests)), self.requests[first:]
        self.rows.begin(rows, [(self.request_seeds[r], len(self.prompts[r]), self.limits[r]) for r in added])
        self.rows.record(rows, *self.choose(self.ends[rows], self.rows.seeds[rows], self.rows.steps[rows]))
        self._read(1, first)

    def _next(self) -> tuple[list[int], list[int]]:
        """Waiting requests for the free rows: those to prefill, within the token budget (at least one), and those
        whose prompt a live row holds or one of the former will."""
        held = {self.same[request] for request in self.requests}
        new: list[int] = []
        sharing: list[int] = []
        used = 0
        while self.waiting and len(self.requests) + len(new) + len(sharing) < self.capacity:
            request = self.waiting[0]
            length = len(self.prompts[request])
            if self.same[request] in held:
                sharing.append(request)
            elif new and used + length > self.max_tokens:
                break
            else:
                new.append(request)
                held.add(self.same[request])
                used += length
            self.waiting.popleft()
        return new, sharing

    def prefill(self, requests: list[int], first_row: int) -> Tensor:
        """Write the requests' prompts to the cache from `first_row` on; returns the states (B, H) of their ends."""
        prompts = [self.prompts[request] for request in requests]
        cu = [0, *accumulate(map(len, prompts))]
        tokens = torch.tensor([*chain.from_iterable(prompts)], device=self.ends.device)
        sequences = PackedSequences(cu, self.cache, first_row)
        hidden = self.policy.model.prefill(tokens, sequences, self.policy.adapter)
        return hidden[torch.tensor(cu[1:], device=tokens.device) - 1]

    def _decode(self) -> None:
        """Some steps of all live rows, as many as none of them can do without or the buffer holds; then read them."""
        at("rollout decode")
        live = len(self.requests)
        steps = min(self.unread, min(self.limits[r] - len(self.responses[r].tokens) for r in self.requests))
        longest = max(map(self._cached, self.requests))
        for step in range(steps):
            if self.stepper.graphs:
                tell_forward(self.policy.model, live, None, slice(None))  # a replay runs none of the code that tells
                tell_head(live, self.sampler.weight)
            self.stepper.run(self._step, live, longest + step)
        self._read(steps, 0)

    def _step(self, n: int, longest: int) -> None:
        """Decode and sample a token for each of the first `n` rows, on the device."""
        rows, state = slice(0, n), self.rows
        hidden = self.decode(state.tokens[rows], DecodeStep(self.cache, state.lengths[rows], longest))
        state.lengths[rows] += state.alive[rows]
        state.record(rows, *self.choose(hidden, state.seeds[rows], state.steps[rows]))
        state.line += 1

    def _cached(self, request: int) -> int:
        """Tokens in the cache: all but the one sampled last."""
        return len(self.prompts[request]) + len(self.responses[request].tokens) - 1

    def choose(self, hidden: Tensor, seeds: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """The next tokens (B,) int64 of rows with these states (B, H), and their log-probs (B,) f32."""
        tell_head(len(hidden), self.sampler.weight)
        return self.sampler(hidden, seeds, steps)

    def _read(self, steps: int, first: int) -> None:
        """Record what `steps` steps gave to the rows from `first` on, and let finished sequences leave."""
        found = zip(*self.rows.read(steps, slice(first, len(self.requests))), strict=True)
        ended = [row for row, (tokens, logprobs) in enumerate(found, first) if self._record(row, tokens, logprobs)]
        for row in reversed(ended):
            self._leave(row)
        if ended:
            self.rows.free(len(self.requests))

    def _record(self, row: int, tokens: list[int], logprobs: list[float]) -> bool:
        """Add tokens to a response until one ends it; whether one did."""
        request = self.requests[row]
        response, strings = self.responses[request], self.sampling.stop_strings
        for token, logprob in zip(tokens, logprobs, strict=True):
            response.tokens.append(token)
            response.logprobs.append(logprob)
            response.finished = token in self.sampling.stop_ids or (
                strings is not None and strings.completed_by_last(response.tokens)
            )
            if response.finished or len(response.tokens) == self.limits[request]:
                return True
        return False

    def _leave(self, row: int) -> None:
        """Free `row`: the last live request moves there."""
        request, last = self.requests.pop(), len(self.requests)
        if row < last:
            self.cache.copy(last, row, self._cached(request))
            self.rows.move(last, row)
            self.ends[row] = self.ends[last]
            self.requests[row] = request


GB = 10**9
SHARE = 0.5  # of the free memory, where no number of bytes is given


def rows_that_fit(model: SharedModel, length: int, wanted: int, max_gb: float | None = None) -> int:
    """Rows of a `KVCache` for sequences of up to `length` tokens: `wanted`, or as many as fit, which is logged once.

    A row takes `length * bytes_per_token(model)`. All rows together take at most `max_gb` GB, or where that is None
    half of the memory that is free now. Raises `UsageError` where not even one fits.
    """
    row = length * bytes_per_token(model)
    allowed = SHARE * free_bytes(model.device) if max_gb is None else max_gb * GB
    by = "half of the free memory" if max_gb is None else f"max_kv_cache_gb={max_gb:g}"
    fitting = int(allowed // row)
    if fitting == 0:
        raise UsageError(
            f"keys and values of one sequence of up to {length} tokens take {row / GB:.3g} GB, and {by} allows "
            f"{allowed / GB:.3g} GB. Lower response_length, leave out the longest prompts, or raise max_kv_cache_gb."
        )
    if fitting < wanted:
        _announce(fitting, wanted, by)
    return min(fitting, wanted)


def refuse_unfitting(model: SharedModel, length: int) -> None:
    """Raise `UsageError`, in every process, where one has no room for a rollout with the divided layers of `model`
    gathered: what the others hold of them, a packed copy where decoding makes one, and the keys and values of one
    sequence of `length` tokens. Nothing is checked where no layers are divided."""
    if not model.sharded:
        return
    whole, held = layer_bytes(model)
    copied, keys = whole if unserved(model) is None else 0, length * bytes_per_token(model)
    needed = whole - held + copied + keys
    for rank, (need, free) in enumerate(gather(torch.tensor([[needed, free_bytes(model.device)]])).tolist()):
        if need > free:
            raise UsageError(
                f"process {rank} has {free / GB:.3g} GB free on its {model.device.type}, and a rollout needs "
                f"{need / GB:.3g} GB: the layers of the base are gathered whole for it, of which a process holds "
                f"{held / GB:.3g} of {whole / GB:.3g} GB, beside {copied / GB:.3g} GB for a packed copy and "
                f"{keys / GB:.3g} GB for keys and values of one sequence of {length} tokens. Use devices with more "
                "memory or a smaller base, or shorten prompts and responses."
            )


def bytes_per_token(model: SharedModel) -> int:
    """Keys and values of one token in all layers, as a forward writes them: for most architectures 2 * layers *
    key-value heads * head_dim numbers."""
    return model.cache_bytes


@cache
def _announce(fitting: int, wanted: int, by: str) -> None:
    logging.getLogger(__name__).warning(
        "%d sequences are decoded together instead of %d: the keys and values of more exceed %s. The responses are the "
        "same; lower max_rollout_batch or response_length, or raise max_kv_cache_gb.", fitting, wanted, by,
    )  # fmt: skip
