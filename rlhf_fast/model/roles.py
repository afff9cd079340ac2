"""The roles a model plays: a policy (or reference) gives log-probs, a critic (or reward model) gives scalars.

Each is a `SharedModel` and the name of the adapter that serves it, so that several roles can share one base.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from rlhf_fast.model.batches import NO_ROWS, MicroBatches, by_tokens
from rlhf_fast.model.head import ScalarHead, ScoreHead
from rlhf_fast.model.packed import SPARE, Packed
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.model.work import tell_head
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

    cut.run(critic.model, by_tokens([len(sequences[i]) for i in order], order), score, spare=NO_ROWS, may_stop=False)
    return out.cpu()
