"""What forwards and backwards of the roles allocate, found without memory: the project's own code on fake tensors.

    fake_tensors()             within it tensors have shapes and dtypes and no memory
    Roles                      the roles of a run, made of such tensors
    trace(roles, sequences)    the most that each phase has allocated at once for a micro-batch

A storage counts from the operation that gives it until it is freed, as an allocator would see it. The scratch memory of
C++ kernels and of libraries is not seen: a few MB for each thread.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf_fast.model.attention import DecodeStep, KVCache, PackedSequences
from rlhf_fast.model.packed import Packed
from rlhf_fast.model.packed_decoder import unserved
from rlhf_fast.model.roles import Critic, Policy, ValueModel
from rlhf_fast.model.trunk import TrunkStates
from rlhf_kernels import IGNORED, policy_reference_logprobs, ppo_loss


class Sequences(NamedTuple):
    """A micro-batch: prompt and response tokens of each sequence."""

    lengths: tuple[tuple[int, int], ...]

    @property
    def tokens(self) -> int:
        return sum(prompt + response for prompt, response in self.lengths)

    @property
    def slots(self) -> int:
        return sum(response for _, response in self.lengths)

    @property
    def pairs(self) -> int:
        """Scores of attention that are kept for a backward, for each head."""
        return sum((prompt + response) ** 2 for prompt, response in self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(map(sum, self.lengths), default=0)

    @property
    def prompts(self) -> Sequences:
        """The same without responses."""
        return Sequences(tuple((prompt, 0) for prompt, _ in self.lengths))


@dataclass(frozen=True)
class Roles:
    """As `rlhf_fast.train.roles` makes them; scorer: a reward model, where it runs here."""

    policy: Policy
    reference: Policy
    critic: ValueModel
    scorer: Critic | None = None
    temperature: float = 1.0
    entropy_gradient: bool = False
    exact_kl: bool = False


class Traced(NamedTuple):
    """Bytes beyond weights, packed weights, keys and values, and the gradients of micro-batches before.

    backward: of the first micro-batch of a step, whose gradients are new; later: of one that adds to them. logprobs,
    logprobs_backward: what an update holds as its log-probs begin, forward and backward, which have scratch of their
    own.
    """

    prefill: int
    decode: int
    scoring: int
    forward: int
    backward: int
    later: int
    logprobs: int
    logprobs_backward: int


LOGPROBS = ("linear_logprobs", "linear_logprobs_backward")


class Allocated(TorchDispatchMode):
    """live: bytes of the storages that were made within it and are not freed; peak: the most of them; at: how many
    they were when each of `LOGPROBS` began."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()
        self.at = dict.fromkeys(LOGPROBS, 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for value in args:  # made before: a view of it is nothing new
            self._see(value, counts=False)
        if func.namespace == "rlhf" and (name := func._schema.name.partition("::")[2]) in self.at:
            self.at[name] = max(self.at[name], self.live)
        result = func(*args, **(kwargs or {}))
        self._see(result)
        return result

    def _see(self, value: Any, *, counts: bool = True) -> None:
        if isinstance(value, (list, tuple)):
            for one in value:
                self._see(one, counts=counts)
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        address, count = storage._cdata, storage.nbytes() * counts
        if address in self.known:
            return
        self.known.add(address)
        self.live += count
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, address, count)

    def _freed(self, address: int, count: int) -> None:
        self.known.discard(address)
        self.live -= count


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Within it, tensors that are made have no memory. Nor is garbage collected, of which there is little: looking for
    it takes a sixth of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        if collects:
            gc.enable()


def trace(roles: Roles, sequences: Sequences) -> Traced:
    """The peaks of the phases for a micro-batch of `sequences`; decode: for a new token of each, beside those it has.

    To be called within the `fake_tensors` that `roles` were made in.
    """
    forward, backward, at = _update(roles, sequences)
    later = _update(roles, sequences)[1] if roles.policy.model.train_base else backward  # gradients of adapters are few
    for _, parameter in (*roles.policy.named_parameters(), *roles.critic.named_parameters()):
        parameter.grad = None
    packs = unserved(roles.policy.model) is None  # a packed copy decodes, in little memory beside its own
    decode, scoring = 0 if packs else _decode(roles, sequences), _scoring(roles, sequences)
    return Traced(
        _prefill(roles, sequences), decode, scoring, forward, backward, later, *(at[name] for name in LOGPROBS)
    )


def _packed(roles: Roles, sequences: Sequences) -> Packed:
    labels = [[IGNORED] * prompt + [0] * response for prompt, response in sequences.lengths]
    packed = Packed.from_sequences([[0] * len(row) for row in labels], labels)
    depth, model = roles.reference.model.trunk_depth, roles.reference.model
    if depth:  # kept since before, by a `TrunkCache`; what is read of it is a copy
        packed.trunk = TrunkStates(model, depth, torch.empty(sequences.tokens, model.hidden_size, dtype=model.dtype))
    if roles.critic.reads_reference:
        packed.ref_hidden = torch.empty(sequences.slots, model.hidden_size, dtype=model.dtype)
    return packed


def _update(roles: Roles, sequences: Sequences) -> tuple[int, int, dict[str, int]]:
    """The most before the backward of a micro-batch's loss begins, the most of it, with the gradients as they come, and
    what there is as log-probs begin."""
    with Allocated() as allocated:
        packed = _packed(roles, sequences)
        hidden = roles.policy.hidden(packed)
        scored = roles.policy.read(
            hidden, packed.labels, packed.scored,
            temperature=roles.temperature, entropy=True, entropy_gradient=roles.entropy_gradient,
        )  # fmt: skip
        values = roles.critic.values(replace(packed, policy_hidden=hidden))
        columns = [torch.zeros(sequences.slots) for _ in range(4)]
        mask = packed.labels != IGNORED
        loss = ppo_loss(
            scored.logprobs, columns[0], columns[1], values, columns[2], columns[3], mask=mask,
            value_mask=torch.ones_like(mask), denominator=1.0, value_denominator=1.0, cliprange=0.2,
            cliprange_value=0.2, vf_coef=0.1, entropy=scored.entropy,
        ).loss  # fmt: skip
        del packed, hidden, scored, values, columns, mask
        forward, allocated.peak = allocated.peak, allocated.live
        loss.backward()
    return forward, allocated.peak, allocated.at


@torch.no_grad()
def _scoring(roles: Roles, sequences: Sequences) -> int:
    with Allocated() as allocated:
        packed = _packed(roles, sequences)
        hidden, ref_hidden = roles.policy.hidden(packed), roles.reference.hidden(packed)
        values = roles.critic.values(replace(packed, policy_hidden=hidden, ref_hidden=ref_hidden))
        weight, bias = roles.policy.model.lm_head
        ref_weight = None if roles.reference.model is roles.policy.model else roles.reference.model.lm_head[0]
        found = policy_reference_logprobs(
            pad(hidden, (0, 0)), pad(ref_hidden, (0, 0)), weight, packed.labels, bias=bias, ref_weight=ref_weight,
            temperature=roles.temperature, softcap=roles.policy.model.softcap, exact_kl=roles.exact_kl,
            scored=packed.scored,
        )  # fmt: skip
        del hidden, ref_hidden, values, found
        if roles.scorer is not None:
            _score(roles.scorer, sequences)
    return allocated.peak


def _score(scorer: Critic, sequences: Sequences) -> Tensor:
    return scorer.values(Packed.from_sequences([[0] * sum(lengths) for lengths in sequences.lengths]))


@torch.no_grad()
def _prefill(roles: Roles, sequences: Sequences) -> int:
    prompts = [prompt for prompt, _ in sequences.lengths]
    cu = [0, *accumulate(prompts)]
    cache = KVCache(len(prompts), max(prompts))
    with Allocated() as allocated:
        found = PackedSequences(cu, cache)
        roles.policy.model.prefill(torch.zeros(cu[-1], dtype=torch.int64), found, roles.policy.adapter)
    return allocated.peak - cache.nbytes()


@torch.no_grad()
def _decode(roles: Roles, sequences: Sequences) -> int:
    """Of the last step through the modules, in which each row attends to all positions of the longest."""
    rows, longest = len(sequences.lengths), max(prompt + response for prompt, response in sequences.lengths)
    cache = KVCache(rows, longest)
    with Allocated() as allocated:
        step = DecodeStep(cache, torch.zeros(rows, dtype=torch.int64), longest - 1)
        roles.policy.model.decode(torch.zeros(rows, dtype=torch.int64), step, roles.policy.adapter)
    return allocated.peak - cache.nbytes()


def cache_bytes(policy: Policy) -> int:
    """Keys and values of one token, in bytes."""
    cache = KVCache(1, 1)
    with torch.no_grad():
        policy.model.prefill(torch.zeros(1, dtype=torch.int64), PackedSequences([0, 1], cache), policy.adapter)
    return cache.nbytes()
