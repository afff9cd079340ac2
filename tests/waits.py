"""`Waits`: where the host would wait for a CUDA device, found on a CPU.

Every tensor counts as one of the device, but those that `torch.randperm` made and what is inside the kernels' operations
and torch's optimisers. A wait is whatever needs the values of a tensor: a number or a list of it, a copy to the host, a
shape that depends on values (nonzero, a bool index, repeat_interleave without its size), and a copy of a list to the
device that is not from pinned memory.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[1]
OUTSIDE = (str(ROOT / "kernels"), str(Path(torch.__file__).parent / "optim"))
READS = {Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.item, Tensor.__bool__, Tensor.__float__, Tensor.__int__,
         Tensor.__index__}  # fmt: skip
BY_VALUE = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero",
            "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::bincount"}  # fmt: skip


class Waits:
    """Within it, `found` collects a line for each wait: what, and the file and function of ours where it is."""

    def __init__(self) -> None:
        self.found: list[str] = []
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
            if name.startswith(OUTSIDE):
                return
            if own is None and name.startswith(str(ROOT)) and name != __file__:
                own = f"{Path(name).name}:{frame.f_code.co_name}"
            frame = frame.f_back
        self.found.append(f"{what} in {own}")


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
        elif function is Tensor.to and _device_of(args, kwargs) is not None and not kwargs.get("non_blocking"):
            self.waits.add("to a device")
        result = function(*args, **kwargs)
        if function is torch.randperm:
            result.on_host = True
        return result


def _device_of(args, kwargs):
    return next((x for x in (*args[1:], *kwargs.values()) if isinstance(x, (torch.device, str))), None)


class _Operations(TorchDispatchMode):
    """What torch runs, wherever it was asked for."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = operation.name().split(".")[0]
        if name in BY_VALUE and sys._getframe(1).f_code.co_name != "__torch_function__":
            self.waits.add(name)
        elif operation is torch.ops.aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
            self.waits.add(name)
        elif name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"):
            if any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]):
                self.waits.add(f"{name} by a mask")
        return operation(*args, **kwargs)
