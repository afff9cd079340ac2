"""LoRA on the linear layers of the base, and which adapter serves which rows.

`y = x W^T + b + scale (x A^T) B^T` with the rows of x grouped by adapter (Hu et al. 2021, "LoRA"). The adapters of a
forward are read from the `Routing` while it runs, and enter the autograd graph as plain tensors there: a later switch
cannot change a backward. Recomputation under activation checkpointing, which is here too, restores the forward's route.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from rlhf_fast.runtime.errors import UsageError
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
        self.factors: dict[tuple[tuple[int, ...], str], tuple[Tensor, Tensor]] | None = None

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

    def bind(self, name: str, a: nn.Parameter, b: nn.Parameter, scale: float) -> None:
        """An adapter whose A (R, K) and B (N, R), fp32, stay the parameters of another module too."""
        self.lora_a[name], self.lora_b[name], self.scale[name] = a, b, scale

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
        if self.routing.factors is not None and len(route.names) == 1:
            y, (a, b) = self.base(x), _factors([self], names[0], x.dtype, self.routing.factors)
            y.view(-1, y.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]) @ a.t(), b.t())
            return y
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


def project(modules: Sequence[nn.Module], x: Tensor, routing: Routing) -> list[Tensor]:
    """What each of the linear `modules` gives for x (..., K): (..., N) each.

    Where adapters are kept cast (see `Routing.keep_factors`) and one serves all rows, the results are views of one
    tensor: one product with weights that lie side by side in memory (see `join_weights`), one each with others. The
    adapters of all modules are added by two products. No gradient flows then.
    """
    bases: list[Any] = [m.base if isinstance(m, LoRALinear) else m for m in modules]
    route = routing.current
    plain = all(type(base) is nn.Linear for base in bases)
    if routing.factors is None or route is None or len(route.names) != 1 or not plain:
        return [module(x) for module in modules]
    rows, sizes = x.reshape(-1, x.shape[-1]), [base.weight.shape[0] for base in bases]
    y = rows.new_empty(rows.shape[0], sum(sizes))
    for weight, bias, part in _products(bases, y):
        if bias is None:
            torch.mm(rows, weight.t(), out=part)
        else:
            torch.addmm(bias, rows, weight.t(), out=part)
    (name,) = route.names
    if name is not None and any(name in m.scale for m in modules if isinstance(m, LoRALinear)):
        a, b = _factors(modules, name, x.dtype, routing.factors)
        y.addmm_(rows @ a.t(), b.t())
    return [part.view(*x.shape[:-1], -1) for part in y.split(sizes, 1)]


def _products(bases: Sequence[nn.Linear], y: Tensor) -> list[tuple[Tensor, Tensor | None, Tensor]]:
    """Weight, bias and result, in y (M, sum of N), of each product: one for all of `bases` that lie side by side."""
    weights, biases = [base.weight for base in bases], [base.bias for base in bases]
    weight, bias = side_by_side(weights), side_by_side(biases)
    if weight is not None and (bias is not None or not any(one is not None for one in biases)):
        return [(weight, bias, y)]
    return list(zip(weights, biases, y.split([len(one) for one in weights], 1), strict=True))


def side_by_side(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """One view (sum of N_i, ...) of tensors (N_i, ...) that lie one behind the other in one storage; None of others.

    It is looked up at each use: what moves or copies a model (`to`, `deepcopy`, sharding) takes them apart.
    """
    found = [tensor.detach() for tensor in tensors if tensor is not None]
    if len(found) < len(tensors):
        return None
    first, end = found[0], found[0].storage_offset()
    for tensor in found:
        alike = (tensor.dtype, tensor.shape[1:], tensor.stride()) == (first.dtype, first.shape[1:], first.stride())
        here = tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (alike and here and tensor.is_contiguous() and tensor.storage_offset() == end):
            return None
        end += tensor.numel()
    return first.as_strided((sum(map(len, found)), *first.shape[1:]), first.stride())


def _factors(
    modules: Sequence[nn.Module], name: str, dtype: torch.dtype, kept: dict[tuple[tuple[int, ...], str], Any]
) -> tuple[Tensor, Tensor]:
    """A (R, K) times the scale, R the ranks of all modules that the adapter `name` serves, one below the other, and B
    (N, R), each module's beside its own ranks; made once and kept."""
    key = tuple(map(id, modules)), name
    if key not in kept:
        outputs, parts, rank = 0, [], 0
        blocks: list[tuple[slice, slice, Tensor]] = []
        for module in modules:
            size = _outputs(module)
            if isinstance(module, LoRALinear) and name in module.scale:
                a, b = module.lora_a[name].detach(), module.lora_b[name].detach()
                parts.append(a * module.scale[name])
                blocks.append((slice(outputs, outputs + size), slice(rank, rank + len(a)), b))
                rank += len(a)
            outputs += size
        whole = torch.zeros(outputs, rank, dtype=dtype, device=parts[0].device)
        for out, ranks, b in blocks:
            whole[out, ranks] = b.to(dtype)
        kept[key] = torch.cat(parts).to(dtype), whole
    return kept[key]


def _outputs(module: Any) -> int:
    """Entries of a linear layer's result."""
    return module.weight().shape[0] if isinstance(module, LoRALinear) else module.weight.shape[0]


def checkpoint_activations(model: PreTrainedModel, routing: Routing) -> None:
    """Wrap the forward of every decoder layer of `model`, in place, so that backward computes it again.

    transformers' own switch works only on a layer in training mode, which turns on the dropout of an architecture
    whose layer applies it by itself (OPT). Raises `UsageError` if the architecture has no layer to checkpoint.
    """

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), routing.use(routing.current)

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UsageError(
            f"{type(model).__name__} does not support activation checkpointing; set gradient_checkpointing=False."
        )
    for layer in layers:
        layer.forward = partial(  # type: ignore[method-assign]  # nothing is random in eval: no random state to keep
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
        )
