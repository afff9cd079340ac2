"""`Waits`: where the host would wait for a CUDA device, found on a CPU.

Every tensor counts as one of the device, but those that `torch.randperm` made and what is inside the kernels'
operations and torch's optimisers. A wait is whatever needs the values of a tensor: a number or a list of it, a copy to
the host, a shape that depends on values (nonzero, a bool index, repeat_interleave without its size), and a copy of a
list to the device that is not from pinned memory.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[1]
KERNELS, OPTIMISERS = str(ROOT / "kernels"), str(Path(torch.__file__).parent / "optim")
OURS = (str(ROOT / "rlhf_fast"), KERNELS)
READS = {Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.item, Tensor.__bool__, Tensor.__float__, Tensor.__int__,
         Tensor.__index__}  # fmt: skip
BY_VALUE = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero",
            "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::bincount"}  # fmt: skip
BY_INDEX = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class Waits:
    """Within it, `found` collects a line for each wait: what, and the file and function of ours where it is.

    in_kernels: look inside the kernels' operations as well.
    """

    def __init__(self, *, in_kernels: bool = False) -> None:
        self.outside = (OPTIMISERS,) if in_kernels else (OPTIMISERS, KERNELS)
        self.found: list[str] = []
        self.inside = 0  # reads that have been told of
        self.modes = (_Functions(self), _Operations(self))

    def __enter__(self) -> Waits:
        for mode in self.modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for mode in reversed(self.modes):
            mode.__exit__(*error)

    def add(self, what: str) -> None:
        frame, own = sys._getframe(2), None
        while frame is not None:
            name = frame.f_code.co_filename
            if name.startswith(self.outside):
                return
            if own is None and name.startswith(OURS):
                own = f"{Path(name).name}:{frame.f_code.co_name}"
            frame = frame.f_back
        self.found.append(f"{what} in {own}")

    def is_ours(self) -> bool:
        """Whether our own code called: that of libraries asks for the device that a tensor is on already."""
        return sys._getframe(2).f_code.co_filename.startswith(OURS)


class _Functions(TorchFunctionMode):
    """What is called from Python: on a CPU, `tolist` runs no operation."""

    def __init__(self, waits: Waits) -> None:
        self.waits = waits

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        on_host = bool(args) and isinstance(args[0], Tensor) and getattr(args[0], "on_host", False)
        if function in READS and not on_host:
            self.waits.add(function.__name__)
        elif function is torch.tensor and kwargs.get("device") is not None:
            self.waits.add("torch.tensor on a device")
        elif function is Tensor.to and self.waits.is_ours() and _waiting_copy(args, kwargs):
            self.waits.add("to a device")
        self.waits.inside += function in READS
        try:
            result = function(*args, **kwargs)
        finally:
            self.waits.inside -= function in READS
        if on_host or function is torch.randperm:
            for one in result if isinstance(result, (list, tuple)) else [result]:
                if isinstance(one, Tensor):
                    one.on_host = True
        return result


def _waiting_copy(args, kwargs):
    named = any(isinstance(x, (torch.device, str)) for x in (*args[1:], *kwargs.values()))
    return named and not kwargs.get("non_blocking")


class _Operations(TorchDispatchMode):
    """What torch runs, wherever it was asked for."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = operation.name().split(".")[0]
        by_value = name in BY_VALUE and not self.waits.inside
        by_count = operation is torch.ops.aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
        if by_value or by_count:
            self.waits.add(name)
        elif name in BY_INDEX and any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]):
            self.waits.add(f"{name} by a mask")
        return operation(*args, **kwargs)
