"""LoRA on the linear layers of the base, and which adapter serves which rows.

`y = x W^T + b + scale (x A^T) B^T` with the rows of x grouped by adapter (Hu et al. 2021, "LoRA"). The adapters of a
forward are read from the `Routing` while it runs, and enter the autograd graph as plain tensors there: a later switch
cannot change a backward. Recomputation under activation checkpointing restores the forward's route.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlhf_kernels import lora_linear


@dataclass(frozen=True)
class Route:
    """Rows offsets[g]..offsets[g+1] of the flattened input use adapter names[g]; None is the bare base."""

    names: tuple[str | None, ...]
    offsets: tuple[int, ...]
    trunk: Trunk | None = None

    @classmethod
    def single(cls, name: str | None, rows: int) -> Route:
        return cls((name,), (0, rows))


@dataclass
class Trunk:
    """What a forward does at decoder layer `depth`: without `hidden`, catch the hidden states there and leave the rest
    out; with it, leave the layers below out and go on from `hidden` (1, T, H). See `rlhf_fast.model.trunk`."""

    depth: int
    hidden: Tensor | None = None
    caught: Tensor | None = None


class Routing:
    """Holds the route of the forward that runs now; one object shared by all `LoRALinear` of a model."""

    def __init__(self) -> None:
        self.current: Route | None = None
        self.factors: dict[tuple[int, str], tuple[Tensor, Tensor]] | None = None

    @contextmanager
    def keep_factors(self) -> Iterator[None]:
        """Within it no weight changes: adapters are scaled and cast to the dtype of the layers' input once."""
        self.factors = {}
        try:
            yield
        finally:
            self.factors = None

    @contextmanager
    def use(self, route: Route | None) -> Iterator[None]:
        before, self.current = self.current, route
        try:
            yield
        finally:
            self.current = before


class LoRALinear(nn.Module):
    """Stands in for an `nn.Linear` or a `Conv1D` of the base and adds the adapter of each row."""

    def __init__(self, base: nn.Linear | Conv1D, routing: Routing) -> None:
        super().__init__()
        self.base = base
        self.routing = routing
        self.lora_a = nn.ParameterDict()
        self.lora_b = nn.ParameterDict()
        self.scale: dict[str, float] = {}

    @property
    def transposed(self) -> bool:
        """GPT-2's Conv1D stores (in, out)."""
        return isinstance(self.base, Conv1D)

    def weight(self) -> Tensor:
        """(N, K), whatever the base stores."""
        return self.base.weight.t() if self.transposed else self.base.weight

    def add(self, name: str, rank: int, scale: float) -> None:
        """A fresh adapter in fp32: A uniform (Kaiming, a = sqrt 5), B zero, as PEFT initialises."""
        n, k = self.weight().shape
        device = self.base.weight.device
        a = torch.empty(rank, k, dtype=torch.float32, device=device)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        self.lora_a[name] = nn.Parameter(a)
        self.lora_b[name] = nn.Parameter(torch.zeros(n, rank, dtype=torch.float32, device=device))
        self.scale[name] = scale

    def copy(self, source: str, target: str) -> None:
        self.lora_a[target] = nn.Parameter(self.lora_a[source].detach().clone())
        self.lora_b[target] = nn.Parameter(self.lora_b[source].detach().clone())
        self.scale[target] = self.scale[source]

    def remove(self, name: str) -> None:
        del self.lora_a[name], self.lora_b[name], self.scale[name]

    def forward(self, x: Tensor) -> Tensor:
        route = self.routing.current
        if route is None:
            return self.base(x)
        names = [name for name in dict.fromkeys(route.names) if name is not None and name in self.scale]
        if not names:
            return self.base(x)
        if self.routing.factors is not None and len(route.names) == 1 and x.is_cuda:
            return self._with_factors(x, *self._factors(names[0], x.dtype))
        slots = [names.index(name) if name in self.scale else -1 for name in route.names]
        y = lora_linear(
            x.reshape(-1, x.shape[-1]),
            self.weight(),
            [self.lora_a[name] for name in names],
            [self.lora_b[name] for name in names],
            [self.scale[name] for name in names],
            slots,
            route.offsets,
            bias=self.base.bias,
        )
        return y.view(*x.shape[:-1], y.shape[-1])

    def _with_factors(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The layer with one adapter for all rows, without a gradient: three launches."""
        y = self.base(x)
        inner = x.reshape(-1, x.shape[-1]) @ a.t()
        y.view(-1, y.shape[-1]).addmm_(inner, b.t())
        return y

    def _factors(self, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A (R, K) times the scale, and B (N, R), in `dtype`."""
        assert self.routing.factors is not None
        key = id(self), name
        if key not in self.routing.factors:
            a, b = self.lora_a[name].detach(), self.lora_b[name].detach()
            self.routing.factors[key] = (a * self.scale[name]).to(dtype), b.to(dtype)
        return self.routing.factors[key]
