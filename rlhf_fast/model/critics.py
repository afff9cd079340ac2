"""What estimates the values of PPO. Beside an adapter of its own (`rlhf_fast.model.roles.Critic`), two that cost less:

    PolicyHeadCritic   a scalar head on the policy's hidden states, which its loss trains too
    ReferenceCritic    a small network on the reference's hidden states, which are the same in every PPO epoch

Neither runs a forward of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from rlhf_fast.model.head import ScalarHead
from rlhf_fast.model.packed import Packed
from rlhf_fast.model.shared import SharedModel


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
