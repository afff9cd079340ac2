"""One table of the operations, `OPS`: what each takes and gives, its checks, its gradient and its backends.

A call passes three stations: the public function (shapes and dtypes), the `torch.library` op `rlhf::name` (which
torch.compile and autograd take as one node) and, inside it, one of the op's backends. Which one: an explicit argument,
else RLHF_FAST_BACKEND, else the first that can run; `choose` has the table. What a backend says against running is its
refusal: a sentence, or None.

The arguments of an op are a NamedTuple, written once: its fields and their types are the op's schema, and every
backend, check and gradient takes one of it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Generic, NamedTuple, TypeVar, get_type_hints

import torch
from torch import Tensor

from rlhf_kernels import extension

VARIABLE = "RLHF_FAST_BACKEND"
ORDER = {"cpu": ("native", "reference"), "cuda": ("triton", "flash", "reference")}  # by device type, the fastest first

A = TypeVar("A", bound=tuple)  # a NamedTuple: the arguments of an op

OPS: dict[str, Op[Any]] = {}
_library = torch.library.Library("rlhf", "DEF")  # its ops live as long as this object

SCHEMA_TYPES: dict[Any, str] = {
    Tensor: "Tensor", Tensor | None: "Tensor?", float: "float", float | None: "float?", int: "int", int | None: "int?",
    bool: "bool", list[Tensor]: "Tensor[]", list[int]: "int[]", list[float]: "float[]",
}  # fmt: skip


class NoLoss(str):
    """A refusal that costs nothing: it follows from what is asked for, such as to train a weight, or the next backend
    is as fast. `runs` says whether the backend runs all the same where it is named."""

    runs: bool

    def __new__(cls, reason: str, *, runs: bool = False) -> NoLoss:
        made = super().__new__(cls, reason)
        made.runs = runs
        return made


def runs_named(refusal: str | None) -> bool:
    """Whether a backend with this refusal runs where it is named."""
    return refusal is None or (isinstance(refusal, NoLoss) and refusal.runs)


def no_refusal(a: Any) -> None:
    """The `refusal` of a backend that always runs."""


@dataclass(frozen=True)
class Backend(Generic[A]):
    """One implementation of an op. `refusal` gives None, or why it should not run for these arguments.

    `module` is where it lives, for a backend that is imported on first use: `imported_late` makes those.
    """

    run: Callable[[A], Any]
    refusal: Callable[[A], str | None] = no_refusal
    module: str | None = None


def imported_late(module: str, function: str, missing: Callable[[Any], str | None]) -> Backend[Any]:
    """The backend whose `function` is in `module`, beside a `refusal`; imported where `missing`, which says what it
    lacks to run at all, gives None."""

    def run(a: Any) -> Any:
        return getattr(import_module(module), function)(a)

    def refusal(a: Any) -> str | None:
        return missing(a) or import_module(module).refusal(a)

    return Backend(run, refusal, module)


@dataclass(frozen=True)
class Gradient(Generic[A]):
    """Makes an op differentiable, once: a gradient of its gradient raises.

    keep(ctx, arguments, results) saves what `gradients(ctx, *gradients of the results)` needs, which returns those of
    the arguments by name. ctx.backend is the backend that the call asked for.
    """

    keep: Callable[[Any, A, tuple[Tensor, ...]], None]
    gradients: Callable[..., Mapping[str, Tensor | None]]


class Op(Generic[A]):
    """One operation. `op(arguments, backend)` is one node of torch's; an op never returns what it mutates.

    results: of the schema, such as "(Tensor, Tensor)"; mutates: the fields of `arguments` that are changed in place.
    fake: results of the right shapes, which reads no data. check: looks at what only the data can show, and raises.
    """

    def __init__(
        self,
        name: str,
        arguments: type[A],
        results: str,
        *,
        fake: Callable[[A], Any],
        backends: Mapping[str, Backend[A]],
        mutates: tuple[str, ...] = (),
        check: Callable[[A], None] | None = None,
        gradient: Gradient[A] | None = None,
    ) -> None:
        self.name, self.arguments, self.check, self.backends = name, arguments, check, dict(backends)
        _library.define(schema(name, arguments, results, mutates), tags=(torch.Tag.pt2_compliant_tag,))
        self.node = getattr(torch.ops.rlhf, name).default
        _library.impl(name, self.run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"rlhf::{name}", lambda *values: fake(self._take(values)[0]), lib=_library)
        if gradient is not None:
            self._register(gradient)
        OPS[name] = self

    def __call__(self, a: A, backend: str | None = None) -> Any:
        return self.node(*a, backend)

    def fused_backend(self, a: A) -> str | None:
        """The backend that these arguments run in where no call names one, or None if that is the reference.

        Only what the backends' `refusal` looks at has to be true of `a`; nothing is logged.
        """
        name = choose(self.name, self.backends, a, None).name
        return None if name == "reference" else name

    def _take(self, values: tuple[Any, ...]) -> tuple[A, str | None]:
        return self.arguments(*values[:-1]), values[-1]

    def run(self, *values: Any) -> Any:
        a, backend = self._take(values)
        with without_autocast(a):
            if self.check is not None:
                self.check(a)
            choice = choose(self.name, self.backends, a, backend)
            for message in choice.messages:
                _log_once(message)
            return self.backends[choice.name].run(a)

    def _register(self, gradient: Gradient[A]) -> None:
        names = (*get_type_hints(self.arguments), "backend")

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            ctx.set_materialize_grads(False)  # a result that is not used has gradient None
            a, ctx.backend = self._take(inputs)
            gradient.keep(ctx, a, output)

        def backward(ctx: Any, *results: Tensor | None) -> tuple[Tensor | None, ...]:
            if torch.is_grad_enabled():
                raise RuntimeError(f"got create_graph=True, but the gradient of {self.name} has none: leave it False")
            found = gradient.gradients(ctx, *results)
            return tuple(found.get(name) for name in names)

        torch.library.register_autograd(f"rlhf::{self.name}", backward, setup_context=setup_context, lib=_library)


def schema(name: str, arguments: type[tuple], results: str, mutates: tuple[str, ...]) -> str:
    """torch's schema of an op: the fields of the NamedTuple `arguments`, then the backend."""
    fields = []
    for field, annotation in get_type_hints(arguments).items():
        kind = SCHEMA_TYPES[annotation]
        fields.append(f"{kind.replace('Tensor', 'Tensor(a!)', 1) if field in mutates else kind} {field}")
    return f"{name}({', '.join(fields)}, str? backend) -> {results}"


def without_autocast(values: Iterable[Any]) -> AbstractContextManager[Any]:
    """Turns autocast off on the device of the first tensor of `values`, where it is on: an op says itself what it
    computes in."""
    on_cuda = next((value.is_cuda for value in values if isinstance(value, Tensor)), False)
    device = "cuda" if on_cuda else "cpu"
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


class Choice(NamedTuple):
    """The name of a backend, and what is to be logged, once for each message."""

    name: str
    messages: list[str]


def choose(op: str, backends: Mapping[str, Backend[A]], a: A, backend: str | None) -> Choice:
    """The one of `backends` of `op` that runs for `a`. What happens to a backend by its refusal and by who names it:

    | refusal             | the call   | RLHF_FAST_BACKEND   | nobody, in order of speed |
    | ------------------- | ---------- | ------------------- | ------------------------- |
    | None                | runs       | runs                | runs                      |
    | a sentence          | ValueError | ValueError          | passed over, logged       |
    | NoLoss              | ValueError | as if unset, logged | passed over               |
    | NoLoss that `runs`  | runs       | runs                | passed over               |
    | no backend so named | ValueError | as if unset, logged |                           |
    """
    if backend is not None:
        return Choice(_named(op, backends, backend, "backend", a), [])
    messages = []
    asked = _asked(backends)
    if asked is not None:
        refusal = backends[asked].refusal(a) if asked in backends else NoLoss("it has none of that name")
        if runs_named(refusal) or not isinstance(refusal, NoLoss):
            return Choice(_named(op, backends, asked, VARIABLE, a), [])
        messages.append(f"{VARIABLE} is {asked!r}, but {op} chooses its backend itself: {refusal}")
    device = _device(a)
    for name in ORDER.get(device, ("reference",)):
        if name in backends:
            refusal = backends[name].refusal(a)
            if refusal is None:
                return Choice(name, messages)
            if refusal == extension.MISSING:  # one line for all operations
                messages.append(f"what runs on a CPU runs in torch, several times slower: {extension.MISSING}")
            elif not isinstance(refusal, NoLoss):
                messages.append(f"{op} runs without its backend {name!r}: {refusal}")
    raise ValueError(f"no backend of {op} can run on {device}: move the tensors to a CPU or CUDA device")


def environment_refusal() -> str | None:
    """That the environment variable names a backend other than C++, or None."""
    asked = _asked({})
    return None if asked in (None, "native") else f"{VARIABLE} is {asked!r}"


def processor_refusal() -> NoLoss | None:
    """That C++ products are slower than torch's on this processor, or None."""
    if extension.LEVEL != "portable":
        return None
    return NoLoss("this processor has neither AVX2 nor AVX-512 with bf16", runs=True)


def _asked(backends: Mapping[str, Backend[Any]]) -> str | None:
    """The backend that the environment names, or None; raises for a name that no op knows."""
    asked = os.environ.get(VARIABLE) or None
    if asked and asked not in backends:
        known = sorted({name for op in OPS.values() for name in op.backends})
        if asked not in known:
            raise ValueError(f"{VARIABLE} is {asked!r}, expected one of {known}, or leave it unset to choose for you")
    return asked


def _named(op: str, backends: Mapping[str, Backend[A]], name: str, origin: str, a: A) -> str:
    """`name`, which `origin` gave; raises where there is none or where it cannot run."""
    if name not in backends:
        raise ValueError(
            f"{origin} is {name!r}, expected one of {sorted(backends)} for {op}, or None to choose for you"
        )
    refusal = backends[name].refusal(a)
    if not runs_named(refusal):
        raise ValueError(f"{origin} is {name!r}, but it cannot run {op}: {refusal}")
    return name


def _device(a: Iterable[Any]) -> str:
    return next(value.device.type for value in a if isinstance(value, Tensor))


@cache
def _log_once(message: str) -> None:
    logging.getLogger(__name__).warning(message)
