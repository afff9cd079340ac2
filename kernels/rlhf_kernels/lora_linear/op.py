"""`lora_linear` as a torch op, and its gradient: one node for the layer, whatever the number of groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf_kernels import backends
from rlhf_kernels.library import Arguments, define
from rlhf_kernels.lora_linear import native, reference
from rlhf_kernels.lora_linear.reference import groups

Settings = tuple[list[float], list[int], list[int]]  # scale, slots, rows

for _name in ("lora_linear", "lora_linear_backward"):
    backends.register(_name, "native", getattr(native, _name), native.supports)
    backends.register(_name, "reference", getattr(reference, _name))


def _fake(args: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    x, (n, k), ranks = args["x"], args["weight"].shape, [a.shape[0] for a in args["lora_a"]]
    return x.new_empty(x.shape[0], n), x.new_empty(x.shape[0], max(ranks)), x.new_empty(sum(ranks) * (k + n))


def _fake_backward(args: Arguments) -> tuple[Any, ...]:
    x, weight = args["x"], args["weight"]
    served = {slot for slot, _ in groups(args["slots"], args["rows"])} if args["adapter_gradients"] else set()
    adapters = (
        [t.new_empty(t.shape if slot in served else (0,)) for slot, t in enumerate(args[side])]
        for side in ("lora_a", "lora_b")
    )
    return (
        x.new_empty(x.shape if args["x_gradient"] else (0,)),
        x.new_empty(weight.shape if args["weight_gradient"] else (0,)),
        x.new_empty(weight.shape[:1] if args["bias_gradient"] else (0,)),
        *adapters,
    )


lora_linear = define(
    "lora_linear(Tensor x, Tensor weight, Tensor? bias, Tensor[] lora_a, Tensor[] lora_b, float[] scale, int[] slots, "
    "int[] rows, str? backend) -> (Tensor, Tensor, Tensor)",
    fake=_fake,
)
lora_linear_backward = define(
    "lora_linear_backward(Tensor x, Tensor weight, Tensor inner, Tensor factors, Tensor[] lora_a, Tensor[] lora_b, "
    "float[] scale, int[] slots, int[] rows, Tensor dy, bool x_gradient, bool weight_gradient, bool bias_gradient, "
    "bool adapter_gradients, str? backend) -> (Tensor, Tensor, Tensor, Tensor[], Tensor[])",
    fake=_fake_backward,
)


class Layer(torch.autograd.Function):
    """`lora_linear` and its gradient as one node.

    Written out, where the other operations use `define_gradient`: a forward and backward runs hundreds of these, and
    torch.library takes lists of tensors apart in Python, entry by entry, for some 0.3 ms a call.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings, *adapters: Tensor
    ) -> Tensor:
        lora_a, lora_b = adapters[: len(adapters) // 2], adapters[len(adapters) // 2 :]
        backend = None if native.serves(x, weight) else "reference"
        y, inner, factors = lora_linear(x, weight, bias, lora_a, lora_b, *settings, backend)
        ctx.save_for_backward(x, weight, inner, factors, *adapters)
        ctx.settings = settings
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inner, factors, *adapters = ctx.saved_tensors
        lora_a, lora_b = adapters[: len(adapters) // 2], adapters[len(adapters) // 2 :]
        x_gradient, weight_gradient, bias_gradient, _, *of_adapters = ctx.needs_input_grad
        backend = None if native.serves(x, weight) and not (weight_gradient or bias_gradient) else "reference"
        dx, d_weight, d_bias, da, db = lora_linear_backward(
            x, weight, inner, factors, lora_a, lora_b, *ctx.settings, dy,
            x_gradient, weight_gradient, bias_gradient, any(of_adapters), backend,
        )  # fmt: skip
        return (
            dx if x_gradient else None,
            d_weight if weight_gradient else None,
            d_bias if bias_gradient else None,
            None,
            *(d if d.numel() else None for d in (*da, *db)),
        )
