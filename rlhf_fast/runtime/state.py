"""`State`: what a part of a run needs to go on as if it had never stopped."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from rlhf_fast.runtime.errors import UsageError


@dataclass
class State:
    """Tensors, and facts that JSON can hold (it gives a float back bit for bit)."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def join(cls, parts: Mapping[str, State]) -> State:
        """One state of several; `part` takes them out again. Names of parts hold no "/"."""
        tensors = {f"{name}/{key}": value for name, state in parts.items() for key, value in state.tensors.items()}
        return cls(tensors, {name: state.facts for name, state in parts.items()})

    def copy(self) -> State:
        """One that keeps its values while training goes on."""
        return State({key: value.detach().clone() for key, value in self.tensors.items()}, copy.deepcopy(self.facts))

    def part(self, name: str) -> State:
        """The state that was joined under `name`. Raises `UsageError` if there is none."""
        if name not in self.facts:
            raise UsageError(f"the checkpoint holds {sorted(self.facts)}, not {name!r}; it is of another stage.")
        start = f"{name}/"
        tensors = {key.removeprefix(start): value for key, value in self.tensors.items() if key.startswith(start)}
        return State(tensors, self.facts[name])


class Stateful(Protocol):
    """A part of a run whose state changes while it trains."""

    def state(self) -> State:
        """What `load_state` takes; the tensors may be those that training goes on to change."""
        ...

    def load_state(self, state: State) -> None: ...
