"""`swiglu` as a torch op, and its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rlhf_kernels import backends
from rlhf_kernels.library import Arguments, define, define_gradient
from rlhf_kernels.swiglu import native, reference, triton

for _name in ("swiglu", "swiglu_backward"):
    backends.register(_name, "native", getattr(native, _name), native.supports)
    backends.register(_name, "triton", getattr(triton, _name), triton.supports)
    backends.register(_name, "reference", getattr(reference, _name))


def _like_gate(args: Arguments) -> Tensor:
    return args["gate"].new_empty(args["gate"].shape)


def _keep(ctx: Any, args: Arguments, results: Any) -> None:
    ctx.save_for_backward(args["gate"], args["up"])
    ctx.backend = args["backend"]


def _gradients(ctx: Any, dy: Tensor | None) -> Mapping[str, Tensor | None]:
    if dy is None:
        return {}
    d_gate, d_up = swiglu_backward(*ctx.saved_tensors, dy, ctx.backend)
    return {"gate": d_gate, "up": d_up}


swiglu = define("swiglu(Tensor gate, Tensor up, str? backend) -> Tensor", fake=_like_gate)
swiglu_backward = define(
    "swiglu_backward(Tensor gate, Tensor up, Tensor dy, str? backend) -> (Tensor, Tensor)",
    fake=lambda args: (_like_gate(args), _like_gate(args)),
)
define_gradient(swiglu, keep=_keep, gradients=_gradients)
