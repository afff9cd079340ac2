"""Which implementation of an operation runs: an explicit argument, else RLHF_FAST_BACKEND, else the first that can.

A backend of an operation is a function and a `supports` that says why it cannot take some arguments. An explicit
choice that cannot run raises; passing over a faster backend is logged, once for each reason, unless it follows from
what the caller wants (`Meant`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor

from rlhf_kernels.extension import MISSING

VARIABLE = "RLHF_FAST_BACKEND"
ORDER = {"cpu": ("native", "reference"), "cuda": ("triton", "flash", "reference")}  # by device type, the fastest first

Arguments = Mapping[str, Any]


class Meant(str):
    """A reason of `supports` that follows from what is asked for, such as to train a weight: nothing is amiss."""


class Backend(NamedTuple):
    """One implementation of one operation, called with the operation's arguments by name."""

    run: Callable[..., Any]
    supports: Callable[[Arguments], str | None]  # None, or the reason why it cannot run


_backends: dict[str, dict[str, Backend]] = {}


def anything(args: Arguments) -> None:
    """The `supports` of a backend that can always run."""


def register(
    op: str, name: str, run: Callable[..., Any], supports: Callable[[Arguments], str | None] = anything
) -> None:
    """Make `run` the backend `name` of operation `op`, in place of an earlier one of that name."""
    _backends.setdefault(op, {})[name] = Backend(run, supports)


def select(op: str, backend: str | None, args: Arguments) -> Callable[..., Any]:
    """The implementation of `op` to call with `args`, by the rule at the top of this module.

    Raises ValueError where the explicit choice (argument or environment variable) is unknown or cannot run.
    """
    chosen = os.environ.get(VARIABLE) or None if backend is None else backend
    if chosen is not None:
        return _explicit(op, chosen, VARIABLE if backend is None else "backend", args).run
    available = _backends[op]
    device = next(value.device.type for value in args.values() if isinstance(value, Tensor))
    for name in ORDER.get(device, ("reference",)):
        if name not in available:
            continue
        reason = available[name].supports(args)
        if reason is None:
            return available[name].run
        if reason == MISSING:
            _say_that_native_is_missing()
        elif not isinstance(reason, Meant):
            _log_once(op, name, reason)
    raise ValueError(f"no backend of {op} can run on {device}: move the tensors to a CPU or CUDA device")


def run(op: str, backend: str | None, **args: Any) -> Any:
    """What the selected implementation of `op` gives for `args`."""
    return select(op, backend, args)(**args)


def is_fused(op: str, args: Arguments) -> bool:
    """Whether `op` would run in another backend than the reference for these arguments, where no backend is given."""
    chosen = os.environ.get(VARIABLE)
    device = next(value.device.type for value in args.values() if isinstance(value, Tensor))
    names = (chosen,) if chosen else ORDER.get(device, ())
    found = (_backends[op][name] for name in names if name in _backends[op] and name != "reference")
    return any(backend.supports(args) is None for backend in found)


def native_refused() -> str | None:
    """That the environment chooses a backend other than C++, or None."""
    chosen = os.environ.get(VARIABLE)
    return None if chosen in (None, "", "native") else f"{VARIABLE} is {chosen!r}"


def _explicit(op: str, name: str, origin: str, args: Arguments) -> Backend:
    available = _backends[op]
    if name not in available:
        raise ValueError(
            f"{origin} is {name!r}, expected one of {sorted(available)} for {op}, or None to choose for you"
        )
    reason = available[name].supports(args)
    if reason is not None:
        raise ValueError(f"{origin} is {name!r}, but it cannot run {op}: {reason}")
    return available[name]


@cache
def _log_once(op: str, name: str, reason: str) -> None:
    logging.getLogger(__name__).warning("%s runs without its backend %r: %s", op, name, reason)


@cache
def _say_that_native_is_missing() -> None:
    """One line for all operations."""
    logging.getLogger(__name__).warning("what runs on a CPU runs in torch, several times slower: %s", MISSING)
