"""What the Triton backends share: whether they can run here, and how a kernel is described, compiled and launched.

Triton itself is imported on first use only, and with it the modules of kernels (`*_triton.py`, `*/triton.py`): each
holds an op's kernels, its host code, and VARIANTS, every form of its kernels. `import rlhf_kernels` works without.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_kernels.op import Backend, imported_late

# A product and a sum are rounded apart, as in the interpreter and in torch: what the tests show there holds on a card.
# The kernels wait for memory, so the fused instruction would gain nothing.
OPTIONS = {"enable_fp_fusion": False}

POINTER = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.bool: "*u1",
}

LAYER_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of rms_norm, rotary and swiglu


class Variant(NamedTuple):
    """One compiled form of a kernel: what `benchmarks.aot` compiles ahead of time, and what is launched.

    `signature` gives Triton's type of every argument that is passed; `constants` the values that are compiled in,
    None for a tensor or number that this form goes without.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int = 1  # of a loop whose next loads are under way while this one's are used
    instruction: str | None = None  # a pattern that the PTX has to contain, such as wgmma for a kernel with a product

    def launch(self, grid: tuple[int, ...], **arguments: Any) -> None:
        """Run on the device of the tensors. An argument that is None has to be None in `constants` as well."""
        passed = {name: value for name, value in arguments.items() if value is not None}
        device = next(value.device for value in passed.values() if isinstance(value, Tensor))
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            options = {"num_warps": self.num_warps, "num_stages": self.num_stages, **OPTIONS}
            self.kernel[grid](**passed, **self.constants, **options)


@contextmanager
def contiguous_(x: Tensor) -> Iterator[Tensor]:
    """A contiguous tensor to change in place of `x`; what was written is copied into `x` where they differ."""
    work = x.contiguous()
    yield work
    if work is not x:
        x.copy_(work)


def in_triton(module: str, function: str) -> Backend[Any]:
    """The backend whose `function` is in `module`, beside a `refusal`; it is imported where Triton can run."""

    return imported_late(module, function, triton_refusal)


def triton_refusal(a: Any) -> str | None:
    """Why Triton cannot take these arguments, or None: it is missing, or a tensor is not on CUDA (nor interpreted)."""
    reason = _missing()
    if reason is not None:
        return reason
    devices = {name: value.device for name, value in zip(a._fields, a, strict=True) if isinstance(value, Tensor)}
    for name, device in devices.items():
        if device.type == "cpu" and interpreted():
            continue
        if device.type != "cuda":
            return (
                f"{name} is on {device}, and Triton takes CUDA tensors; on CPU tensors its interpreter runs, slowly, "
                "with TRITON_INTERPRET=1 in the environment before the start"
            )
    if len(set(devices.values())) > 1:
        got = ", ".join(f"{name} {device}" for name, device in devices.items())
        return f"got {got}, and it takes tensors of one device"
    return None


def float32_refusal(a: Any, *names: str) -> str | None:
    """Why a kernel that computes in float32 cannot take the named columns, or None; some of them may be None."""
    for name in names:
        column = getattr(a, name)
        if column is not None and column.dtype != torch.float32:
            return f"{name} has dtype {column.dtype}, and it computes in float32: the reference takes others"
    return None


def layer_refusal(a: Any) -> str | None:
    """Why a kernel between a layer's products cannot take these dtypes, or None: it computes in float32."""
    dtypes = {x.dtype for name, x in zip(a._fields, a, strict=True) if isinstance(x, Tensor) and name != "rstd"}
    if not dtypes <= set(LAYER_DTYPES):
        return f"got {sorted(map(str, dtypes))}, and it takes bfloat16, float16 or float32: the reference takes others"
    return None


def as_rows(x: Tensor) -> Tensor:
    """x (..., K) as (rows, K) whose rows are contiguous and may be apart: a view where that is possible."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.shape[1] == 1 or rows.stride(1) == 1 else rows.contiguous()


@cache
def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors: TRITON_INTERPRET=1 set before triton is imported."""
    import triton
    import triton.language as tl

    return triton.knobs.runtime.interpret and not isinstance(tl.zeros, triton.JITFunction)


@cache
def _missing() -> str | None:
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton is not available ({error}); to have it, pip install triton"
    return None
