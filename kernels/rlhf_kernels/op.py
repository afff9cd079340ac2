"""One table of the operations, `OPS`: what each takes and gives, its checks, its gradient and its backends.

A call passes three stations: the public function (shapes and dtypes), the `torch.library` op `rlhf::name` (which
torch.compile and autograd take as one node) and, inside it, one of the op's backends. Which one: an explicit argument,
else RLHF_FAST_BACKEND, else the first that can run. An explicit choice that cannot run raises; passing over a faster
backend is logged, once for each reason, unless it follows from what the caller wants (`Meant`).

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
from typing import Any, Generic, TypeVar, get_type_hints

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


class Meant(str):
    """A reason of `supports` that follows from what is asked for, such as to train a weight: nothing is amiss, and
    passing the backend over is not logged."""


class NotFaster(Meant):
    """That the next backend is the faster one, so that passing this one over is no loss.

    `can_run` says whether it runs all the same where it is asked for by name.
    """

    can_run: bool

    def __new__(cls, reason: str, *, can_run: bool) -> NotFaster:
        made = super().__new__(cls, reason)
        made.can_run = can_run
        return made


def can_run(reason: str | None) -> bool:
    """Whether a backend runs where it is named, by what its `supports` gives."""
    return reason is None or (isinstance(reason, NotFaster) and reason.can_run)


def anything(a: Any) -> None:
    """The `supports` of a backend that can always run."""


@dataclass(frozen=True)
class Backend(Generic[A]):
    """One implementation of an op. `supports` gives None, or the reason why it cannot run or why another is faster.

    `module` is where it lives, for a backend that is imported on first use: `imported_late` makes those.
    """

    run: Callable[[A], Any]
    supports: Callable[[A], str | None] = anything
    module: str | None = None


def imported_late(module: str, function: str, cannot_run: Callable[[Any], str | None]) -> Backend[Any]:
    """The backend whose `function` is in `module`, beside a `supports`; imported where `cannot_run` gives None."""

    def run(a: Any) -> Any:
        return getattr(import_module(module), function)(a)

    def supports(a: Any) -> str | None:
        return cannot_run(a) or import_module(module).supports(a)

    return Backend(run, supports, module)


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

    def is_fused(self, a: A) -> bool:
        """Whether these arguments run in another backend than the reference, where no call names one."""
        return self.fused_backend(a) is not None

    def fused_backend(self, a: A) -> str | None:
        """The name of that backend, or None.

        Only what the backends' `supports` look at has to be true of `a`; nothing is logged.
        """
        asked = _asked(self.backends)
        names = (asked,) if asked in self.backends else ORDER.get(_device(a), ())
        found = (name for name in names if name in self.backends and name != "reference")
        return next((name for name in found if self.backends[name].supports(a) is None), None)

    def _take(self, values: tuple[Any, ...]) -> tuple[A, str | None]:
        return self.arguments(*values[:-1]), values[-1]

    def run(self, *values: Any) -> Any:
        a, backend = self._take(values)
        with without_autocast(a):
            if self.check is not None:
                self.check(a)
            return choose(self.name, self.backends, a, backend).run(a)

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


def choose(op: str, backends: Mapping[str, Backend[A]], a: A, backend: str | None) -> Backend[A]:
    """The one of `backends` of `op` that runs for `a`, by the rule at the top of this module.

    Raises ValueError where the explicit choice (argument or environment variable) is unknown or cannot run. An op that
    has no backend of the variable's name, or none that is worth having here, chooses as if it were not set: logged
    once.
    """
    if backend is not None:
        return _named(op, backends, backend, "backend", a)
    asked = _asked(backends)
    if asked is not None:
        reason = backends[asked].supports(a) if asked in backends else "it has none of that name"
        if asked in backends and (can_run(reason) or not isinstance(reason, NotFaster)):
            return _named(op, backends, asked, VARIABLE, a)
        _log_once(f"{VARIABLE} is {asked!r}, but {op} chooses its backend itself: {reason}")
    fastest = _fastest(op, backends, a)
    if fastest is None:
        raise ValueError(f"no backend of {op} can run on {_device(a)}: move the tensors to a CPU or CUDA device")
    return backends[fastest]


def environment_refuses_native() -> str | None:
    """That the environment variable names a backend other than C++, or None."""
    asked = _asked({})
    return None if asked in (None, "native") else f"{VARIABLE} is {asked!r}"


def processor_refuses_native() -> NotFaster | None:
    """That C++ products are slower than torch's on this processor, or None."""
    if extension.LEVEL != "portable":
        return None
    return NotFaster("this processor has neither AVX2 nor AVX-512 with bf16", can_run=True)


def _asked(backends: Mapping[str, Backend[Any]]) -> str | None:
    """The backend that the environment names, or None; raises for a name that no op knows."""
    asked = os.environ.get(VARIABLE) or None
    if asked and asked not in backends:
        known = sorted({name for op in OPS.values() for name in op.backends})
        if asked not in known:
            raise ValueError(f"{VARIABLE} is {asked!r}, expected one of {known}, or leave it unset to choose for you")
    return asked


def _named(op: str, backends: Mapping[str, Backend[A]], name: str, origin: str, a: A) -> Backend[A]:
    if name not in backends:
        raise ValueError(
            f"{origin} is {name!r}, expected one of {sorted(backends)} for {op}, or None to choose for you"
        )
    reason = backends[name].supports(a)
    if not can_run(reason):
        raise ValueError(f"{origin} is {name!r}, but it cannot run {op}: {reason}")
    return backends[name]


def _fastest(op: str, backends: Mapping[str, Backend[A]], a: A) -> str | None:
    """The first that can run; a faster one that cannot is logged."""
    for name in ORDER.get(_device(a), ("reference",)):
        if name not in backends:
            continue
        reason = backends[name].supports(a)
        if reason is None:
            return name
        elif reason == extension.MISSING:  # one line for all operations
            _log_once(f"what runs on a CPU runs in torch, several times slower: {extension.MISSING}")
        elif not isinstance(reason, Meant):
            _log_once(f"{op} runs without its backend {name!r}: {reason}")
    return None


def _device(a: Iterable[Any]) -> str:
    return next(value.device.type for value in a if isinstance(value, Tensor))


@cache
def _log_once(message: str) -> None:
    logging.getLogger(__name__).warning(message)
