"""SwiGLU on a GPU: one launch forward, one backward for both gradients."""

from __future__ import annotations

from torch import Tensor

from rlhf_kernels.triton_support import as_rows, layer_cannot_run

supports = layer_cannot_run


def swiglu(*, gate: Tensor, up: Tensor) -> Tensor:
    """As the reference; arguments are taken as checked and supported."""
    from rlhf_kernels.swiglu import triton_kernels as kernels

    y = gate.new_empty(gate.shape)
    if y.numel() == 0:
        return y
    gate_, up_ = _flat(gate, up)
    kernels.swiglu(gate.dtype).launch(
        _grid(gate_, kernels.BLOCK),
        gate=gate_,
        up=up_,
        y=y,
        width=gate_.shape[1],
        gate_stride=gate_.stride(0),
        up_stride=up_.stride(0),
    )
    return y


def swiglu_backward(*, gate: Tensor, up: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """As the reference; arguments are taken as checked and supported."""
    from rlhf_kernels.swiglu import triton_kernels as kernels

    d_gate, d_up = (gate.new_empty(gate.shape) for _ in range(2))
    if d_gate.numel() == 0:
        return d_gate, d_up
    gate_, up_, dy_ = _flat(gate, up, dy)
    kernels.swiglu_backward(gate.dtype).launch(
        _grid(gate_, kernels.BLOCK),
        gate=gate_,
        up=up_,
        dy=dy_,
        d_gate=d_gate,
        d_up=d_up,
        width=gate_.shape[1],
        gate_stride=gate_.stride(0),
        up_stride=up_.stride(0),
        dy_stride=dy_.stride(0),
    )
    return d_gate, d_up


def _flat(*given: Tensor) -> list[Tensor]:
    """As rows; as a single one where every tensor is contiguous, so that narrow rows fill the blocks as well."""
    if given[0].numel() < 2**31 and all(x.is_contiguous() for x in given):
        return [x.view(1, -1) for x in given]
    return [as_rows(x) for x in given]


def _grid(x: Tensor, block: int) -> tuple[int]:
    return (x.shape[0] * -(-x.shape[1] // block),)
