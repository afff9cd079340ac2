"""The operations as `torch.library` ops in the namespace `rlhf`: torch.compile and autograd take each as one node.

The last argument of a schema is the backend; the others go by name to the backend that is selected inside the op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from rlhf_kernels import backends

NAMESPACE = "rlhf"
_library = torch.library.Library(NAMESPACE, "DEF")  # its ops live as long as this object

Arguments = Mapping[str, Any]


def define(schema: str, *, fake: Callable[[Arguments], Any], check: Callable[[Arguments], None] | None = None) -> Any:
    """The op of `schema`, "name(Tensor x, ..., str? backend) -> ...", to call with its arguments in that order.

    `fake` gives results of the right shapes and reads no data; `check` looks at what only the data can show.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    op = getattr(getattr(torch.ops, NAMESPACE), name).default

    def run(*values: Any) -> Any:
        *values, backend = values  # type: ignore[assignment]
        args = dict(zip(names, values, strict=True))
        with without_autocast(values):
            if check is not None:
                check(args)
            return backends.select(name, backend, args)(**args)

    names = [argument.name for argument in op._schema.arguments[:-1]]
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(
        f"{NAMESPACE}::{name}", lambda *values: fake(dict(zip(names, values, strict=False))), lib=_library
    )
    return op


def without_autocast(values: Iterable[Any]) -> AbstractContextManager[Any]:
    """Turns autocast off on the device of the first tensor of `values`, where it is on: an op says itself what it
    computes in."""
    on_cuda = next((value.is_cuda for value in values if isinstance(value, Tensor)), False)
    device = "cuda" if on_cuda else "cpu"
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def define_gradient(
    op: Any,
    *,
    keep: Callable[[Any, Arguments, tuple[Tensor, ...]], None],
    gradients: Callable[..., Mapping[str, Tensor | None]],
) -> None:
    """Make `op` differentiable, once: a gradient of its gradient raises.

    keep(ctx, arguments, results) saves what `gradients(ctx, *gradients of the results)` needs, which returns those of
    the arguments by name.
    """
    names = [argument.name for argument in op._schema.arguments]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)  # a result that is not used has gradient None
        keep(ctx, dict(zip(names, inputs, strict=True)), output)

    def backward(ctx: Any, *results: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(f"got create_graph=True, but the gradient of {op._name} has none: leave it False")
        found = gradients(ctx, *results)
        return tuple(found.get(name) for name in names)

    torch.library.register_autograd(op._name, backward, setup_context=setup_context, lib=_library)
