"""The operations as `torch.library` ops in the namespace `rlhf`: torch.compile and autograd take each as one node.

The last argument of a schema is the backend; the others go by name to the backend that is selected inside the op.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        if check is not None:
            check(args)
        return backends.select(name, backend, args)(**args)

    names = [argument.name for argument in op._schema.arguments[:-1]]
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(
        f"{NAMESPACE}::{name}", lambda *values: fake(dict(zip(names, values, strict=False))), lib=_library
    )
    return op


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

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
            *values, keyset = inputs  # in this order ctx.needs_input_grad has the order of the arguments
            ctx.set_materialize_grads(False)  # a result that is not used has gradient None
            results = without_gradient(keyset, *values)
            keep(ctx, dict(zip(names, values, strict=True)), results)
            return results

        @staticmethod
        def backward(ctx: Any, *results: Tensor | None) -> tuple[Tensor | None, ...]:
            if torch.is_grad_enabled():
                raise RuntimeError(f"got create_graph=True, but the gradient of {op._name} has none: leave it False")
            found = gradients(ctx, *results)
            return *(found.get(name) for name in names), None

    def without_gradient(keyset: Any, *values: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *values)

    def run(keyset: Any, *values: Any) -> Any:
        differentiates = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in values)
        return Gradient.apply(*values, keyset) if differentiates else without_gradient(keyset, *values)

    # torch.library.register_autograd does the same, and looks up every argument of the schema at every call
    _library.impl(op._opname, run, "Autograd", with_keyset=True)
