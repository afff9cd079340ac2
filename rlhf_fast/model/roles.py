"""The roles a model plays: a policy (or reference) gives log-probs, a critic (or reward model) gives scalars.

    Policy, Critic     a `SharedModel` and the name of the adapter that serves the role: several share one base
    PolicyHeadCritic   a scalar head on the policy's hidden states, which its loss trains too
    ReferenceCritic    a small network on the reference's hidden states, which are the same in every PPO epoch

The last two run no forward of their own. `tensors_by_owner` says whose the memory of them all is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from rlhf_fast.model.batches import NO_SEQUENCES, MicroBatches, by_tokens
from rlhf_fast.model.packed import SPARE, Packed
from rlhf_fast.model.shared import ScalarHead, ScoreHead, SharedModel
from rlhf_fast.model.work import tell_head
from rlhf_fast.runtime.memory import bytes_of
from rlhf_fast.runtime.optimiser import Optimiser
from rlhf_kernels import LogProbs, linear_logprobs
from rlhf_kernels.checks import to_device


@dataclass(frozen=True)
class Policy:
    """A language model: the base of `model` with `adapter` (None: the bare base)."""

    model: SharedModel
    adapter: str | None

    def hidden(self, packed: Packed) -> Tensor:
        """(R, H): hidden states at `packed.rows` only; no other row reaches the language-model head."""
        return self.model.hidden(packed.tokens, packed.cu_seqlens, self.adapter, trunk=packed.trunk_of(self.model))[
            packed.rows
        ]

    def logprobs(
        self, packed: Packed, *, temperature: float = 1.0, entropy: bool = False, entropy_gradient: bool = True
    ) -> LogProbs:
        """Log-probs (R,) f32 of `packed.labels` (0 where -100), and entropies (R,) if asked; differentiable.

        An entropy that is only looked at should have `entropy_gradient=False`: the update is then cheaper.
        """
        return self.read(
            self.hidden(packed), packed.labels, packed.scored,
            temperature=temperature, entropy=entropy, entropy_gradient=entropy_gradient,
        )  # fmt: skip

    def read(
        self, hidden: Tensor, labels: Tensor, scored: int, *, temperature: float, entropy: bool, entropy_gradient: bool
    ) -> LogProbs:
        """`logprobs` of states (R, H) that `hidden` gave, `scored` of which have a label."""
        weight, bias = self.model.lm_head
        tell_head(len(hidden), weight)
        return linear_logprobs(
            hidden, weight, labels,
            bias=bias, temperature=temperature, softcap=self.model.softcap,
            entropy=entropy, entropy_gradient=entropy_gradient, scored=scored,
        )  # fmt: skip

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What training this role changes: its adapter, or the whole base where there is none."""
        return self.model.base.named_parameters() if self.adapter is None else self.model.named_parameters(self.adapter)


@dataclass(frozen=True)
class Critic:
    """A scalar model: hidden states of `model` with `adapter`, read through `head`."""

    model: SharedModel
    adapter: str | None
    head: ScalarHead | ScoreHead
    reads_reference: ClassVar[bool] = False

    @property
    def models(self) -> tuple[SharedModel, ...]:
        """What a forward of this role runs."""
        return (self.model,)

    def values(self, packed: Packed) -> Tensor:
        """(R,) f32: the scalar at each of `packed.rows`; differentiable."""
        hidden = self.model.hidden(packed.tokens, packed.cu_seqlens, self.adapter, trunk=packed.trunk_of(self.model))
        return self.head(hidden[packed.rows])

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What training this role changes: adapter and head, or base and head where there is no adapter."""
        if self.adapter is not None:
            yield from self.model.named_parameters(self.adapter)
            return
        yield from self.model.base.named_parameters()
        yield from ((f"head.{key}", parameter) for key, parameter in self.head.named_parameters())


def adapter_critic(model: SharedModel, adapter: str) -> Critic:
    return Critic(model, adapter, model.heads[adapter])


@torch.no_grad()
def sequence_scores(critic: Critic, sequences: Sequence[list[int]], micro_batches: MicroBatches | int) -> Tensor:
    """(B,) f32 on the CPU: the scalar at the last token of each sequence. micro_batches: those of a run, or the most
    tokens of a forward."""
    cut = MicroBatches(micro_batches) if isinstance(micro_batches, int) else micro_batches
    out = torch.empty(len(sequences), device=critic.model.device)
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))

    def score(rows: list[int], weight: float) -> None:
        chosen = [sequences[i] for i in rows]
        packed = Packed.from_sequences(chosen or [[0]], device=critic.model.device)
        packed = packed.with_trunk(critic.model, chosen) if chosen else replace(packed, numbers=[SPARE])
        values = critic.values(packed)
        if weight:
            out[to_device(torch.tensor(rows), out.device)] = values

    cut.run(
        critic.model, by_tokens([len(sequences[i]) for i in order], order), score, spare=NO_SEQUENCES, may_stop=False
    )
    return out.cpu()


class ValueModel(Protocol):
    """A critic, whichever it is: values (R,) f32 at `packed.rows`, differentiable in its parameters."""

    @property
    def reads_reference(self) -> bool:
        """Whether `packed.ref_hidden` has to be there."""
        ...

    @property
    def models(self) -> tuple[SharedModel, ...]:
        """The models that its forward runs, besides those of policy and reference."""
        ...

    def values(self, packed: Packed) -> Tensor: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


@dataclass(frozen=True)
class PolicyHeadCritic:
    """One linear layer on the policy's last hidden states."""

    head: ScalarHead
    reads_reference: ClassVar[bool] = False
    models: ClassVar[tuple[SharedModel, ...]] = ()

    def values(self, packed: Packed) -> Tensor:
        assert packed.policy_hidden is not None
        return self.head(packed.policy_hidden)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.head.named_parameters(prefix="value_head")


class ReferenceCritic:
    """Two layers with SiLU in float32 on the reference's last hidden states; starts at 0, as every scalar head here.

    It reads the state of a slot and the mean of the response's states so far: what matters for the next token is in the
    first, what has been said until now in the second.
    """

    reads_reference: ClassVar[bool] = True
    models: ClassVar[tuple[SharedModel, ...]] = ()

    def __init__(self, hidden_size: int, device: torch.device | str | None = None) -> None:
        self.inner = nn.Linear(2 * hidden_size, hidden_size, device=device, dtype=torch.float32)
        self.head = ScalarHead(hidden_size, device)

    def values(self, packed: Packed) -> Tensor:
        assert packed.ref_hidden is not None
        hidden = packed.ref_hidden.float()
        read = torch.cat([hidden, running_mean(hidden, packed.sequence_of_rows())], 1)
        return self.head(nn.functional.silu(self.inner(read)))

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.inner.named_parameters(prefix="value_inner")
        yield from self.head.named_parameters(prefix="value_head")


def running_mean(x: Tensor, sequence: Tensor) -> Tensor:
    """(R, H): the mean of x's rows up to each, among those of its own sequence (R,), which never falls."""
    count = torch.arange(1, len(x) + 1, device=x.device)
    before = torch.searchsorted(sequence, sequence)  # rows of earlier sequences
    total = torch.cat([x.new_zeros(1, x.shape[1]), x.cumsum(0)])
    return (total[count] - total[before]) / (count - before)[:, None]


def tensors_by_owner(
    policy: Policy, reference: Policy, critic: ValueModel, others: Sequence[nn.Module] = ()
) -> dict[str, list[Tensor]]:
    """The parameters and buffers of PPO's roles, each once, by the owners of a memory table.

    The shared base is the reference's; an adapter that makes it the reference counts with the policy's, which began as
    its copy. others: modules beside the roles, such as a classifier that gives the reward.
    """
    home = reference.model
    models = {id(model): model for model in (home, policy.model, *critic.models)}.values()
    whole = {id(p) for model in critic.models if model.train_base for p in model.base.parameters()}
    owned: dict[str, list[Tensor]] = {}
    owned["critic adapter and head"] = [p for _, p in critic.named_parameters() if id(p) not in whole]
    served = [(role.model, role.adapter) for role in (policy, reference) if role.adapter is not None]
    owned["policy adapter"] = [p for model, name in served for p in model.parameters(name)]
    taken = {id(parameter) for parameters in owned.values() for parameter in parameters}
    unnamed = [p for model in models for name in model.configs for p in model.parameters(name)]
    owned["reward adapter and head"] = _new(unnamed, taken)
    owned["shared base"] = _new([*home.base.parameters(), *home.base.buffers()], taken)
    beside = [module for model in models for module in (model.base,) if model is not home]
    all_others = [x for module in (*beside, *others) for x in (*module.parameters(), *module.buffers())]
    owned["other models"] = _new(all_others, taken)
    return {owner: list(tensors) for owner, tensors in owned.items() if tensors}


def _new(tensors: Iterable[Tensor], taken: set[int]) -> list[Tensor]:
    """Those that are not `taken` yet; they are then."""
    found = {id(tensor): tensor for tensor in tensors if id(tensor) not in taken}
    taken.update(found)
    return list(found.values())


def held_bytes(models: Iterable[SharedModel], optimiser: Optimiser) -> dict[str, int]:
    """Bytes of the models with their adapters and heads, of the gradients, and of AdamW's moments; a model that is
    given twice counts once."""
    different = {id(model): model for model in models}.values()
    parameters = [parameter for model in different for parameter in model.base.parameters()]
    heads = [p for model in different for name in model.configs for p in model.parameters(name)]
    return {"models and adapters": bytes_of([*parameters, *heads]), **optimiser.held_bytes()}
