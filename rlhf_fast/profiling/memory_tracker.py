"""Who holds the memory of torch: every tensor that is made and freed, counted by owner and by the line that asked.

    tracker = Tracker()
    with tracker:                      sees each operation, backward passes included
        tracker.owner = "activations"  of what is allocated from here on
        tracker.claim("gradients", [p.grad])
    tracker.live[owner, line], tracker.total

A storage counts once, whatever number of tensors look at it, from the operation that gives it until it is freed. What
an operation of torch allocates and frees within itself is not seen; what a C++ kernel of ours does is (its scratch
memory is counted at its most), and so is what its Python part allocates. The numbers that are computed stay the same.
"""

from __future__ import annotations

import sys
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

from rlhf_fast.profiling.memory_table import ACTIVATIONS, BASE, WORKSPACE
from rlhf_kernels.extension import native
from rlhf_kernels.op import OPS

Key = tuple[str, str]  # an owner, and where the memory was asked for
SMALL = 1 << 14
"""Bytes below which a storage is not worth a look at the stack."""
SMALL_ONES, MADE_BEFORE = "small ones", "made before"
OURS, HERE = str(Path(__file__).parents[1]), str(Path(__file__).parent)


class Tracker(TorchDispatchMode):
    """live: bytes by owner and line; total: their sum; by_owner: the same by owner alone.

    owner: of what is allocated next. on_top: called before the total falls from a local maximum, with scratch memory
    counted in: peaks are read there.
    """

    def __init__(self, on_top: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.owner, self.on_top = BASE, on_top
        self.live: dict[Key, int] = defaultdict(int)
        self.by_owner: dict[str, int] = defaultdict(int)
        self.total = 0
        self._rising, self._inside = False, ""  # the kernel of ours that is running
        self._storages: dict[int, list[Any]] = {}  # address of the storage -> bytes, key, a reference that sees its end
        self._lines: dict[tuple[CodeType, int], str] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._see_given(args)
        if func.namespace == "rlhf":
            return self._kernel(func, args)
        result = func(*args, **(kwargs or {}))
        self._see(result, func._schema.name)
        return result

    def claim(self, owner: str, tensors: Iterable[Tensor], line: str | None = None) -> None:
        """The storages of these tensors are `owner`'s from now on, those that were made before the tracker too.

        line: what stands in place of the line that asked for them.
        """
        for tensor in plain(tensors):
            found = self._storages.get(tensor.untyped_storage()._cdata)
            if found is None:
                self._add(tensor, (owner, line or MADE_BEFORE))
                continue
            count, key, _ = found
            found[1] = (owner, line or key[1])
            self._change(-count, key)
            self._change(count, found[1])

    def keep(self, owner: str, count: int, keeper: object) -> None:
        """Bytes that no tensor shows, for as long as `keeper` lives."""
        key = (owner, self._line("native"))
        self._grow(count, key)
        weakref.finalize(keeper, self._fall, count, key).atexit = False

    def forget(self) -> None:
        """Watch no storage any more: not those either that live until the interpreter ends. The counts stay."""
        self._storages.clear()

    def _kernel(self, func: Any, args: tuple[Any, ...]) -> Any:
        """A kernel of ours: the tensors of its Python part are seen one by one, and its scratch at its most."""
        name, held = func._schema.name.partition("::")[2], 0
        if native is not None:
            native.restart_scratch_peak()
            held = native.scratch_held()
        self._inside, outer = name, self._inside
        with self:
            result = OPS[name].run(*args)
        self._inside = outer
        self._see(result, func._schema.name)
        if native is not None and (scratch := native.scratch_peak() - held) > 0:
            key = (WORKSPACE if "logprobs" in name or name == "sample" else ACTIVATIONS, self._line(name))
            self._grow(scratch, key)
            self._fall(scratch, key)
        return result

    def _see_given(self, args: tuple[Any, ...]) -> None:
        """Of what an operation reads: weights that a file gave, say, which no operation made."""
        for value in plain(args):
            if value.untyped_storage()._cdata not in self._storages:
                self._add(value, (self.owner, MADE_BEFORE))

    def _see(self, result: Any, operation: str) -> None:
        for value in plain(result if isinstance(result, (tuple, list)) else (result,)):
            storage = value.untyped_storage()
            found, count = self._storages.get(storage._cdata), storage.nbytes()
            if found is None:
                self._add(value, (self.owner, self._line(operation) if count >= SMALL else SMALL_ONES))
            elif found[0] != count:  # it was resized
                (self._grow if count > found[0] else self._fall)(abs(count - found[0]), found[1])
                found[0] = count

    def _add(self, tensor: Tensor, key: Key) -> None:
        storage = tensor.untyped_storage()
        address, count = storage._cdata, storage.nbytes()

        def gone(_: object) -> None:
            last, owner, _ = self._storages.pop(address)
            self._fall(last, owner)

        self._storages[address] = [count, key, weakref.ref(storage, gone)]
        self._grow(count, key)

    def _grow(self, count: int, key: Key) -> None:
        self._rising = True
        self._change(count, key)

    def _fall(self, count: int, key: Key) -> None:
        if self._rising:
            self._rising = False
            self.on_top()
        self._change(-count, key)

    def _change(self, count: int, key: Key) -> None:
        self.live[key] += count
        if not self.live[key]:
            del self.live[key]
        self.by_owner[key[0]] += count
        self.total += count

    def _line(self, operation: str) -> str:
        """Where in this project the memory is asked for: 'model/lora.py:120 forward, mm'; in a backward pass, the node
        of the graph as well."""
        operation = self._inside or operation.removeprefix("aten::").removeprefix("rlhf::")
        node = torch._C._current_autograd_node()
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and not _is_ours(frame.f_code.co_filename):
            frame = frame.f_back
        what = operation if node is None else f"{operation} in {_plain_name(node.name())}"
        if frame is None:
            return what
        place = (frame.f_code, frame.f_lineno)
        if place not in self._lines:
            path = Path(frame.f_code.co_filename)
            name = frame.f_code.co_name
            within = "" if name.startswith("<") else f" {name}"
            self._lines[place] = f"{path.parent.name}/{path.name}:{frame.f_lineno}{within}"
        return f"{self._lines[place]}, {what}"


def plain(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among `values` that have memory; of one that wraps others (a divided parameter), those."""
    for value in values:
        if type(value) in (Tensor, torch.nn.Parameter):
            yield value
        elif is_traceable_wrapper_subclass(value):
            yield from plain(getattr(value, name) for name in value.__tensor_flatten__()[0])
        elif isinstance(value, Tensor):
            yield value


def _plain_name(node: str) -> str:
    """MmBackward0; of an operation of ours, its name alone."""
    return node.removeprefix("GeneratedBackwardFor_rlhf_").removesuffix("_defaultBackward")


def _is_ours(file: str) -> bool:
    return file.startswith(OURS) and not file.startswith(HERE)
