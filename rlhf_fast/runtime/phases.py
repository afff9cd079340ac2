"""Marks in a run: which phase is going on, how much arithmetic it asks for, and who holds memory. They are free where
nobody listens.

    with phase("update"):           a `Listener` is told of its begin and end, and meanwhile by works(flops, read)
        at("update forward")        a `Watcher` is told from here on which part of it is going on,
        holds("buffers", tensors)   whose tensors are, and
        keeps("packed weights", n, keeper)     what is held outside of torch as long as `keeper` lives
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor


class Listener(Protocol):
    """What is told of the marks. Phases do not nest."""

    def started(self, phase: str) -> None: ...

    def ended(self, phase: str) -> None: ...

    def works(self, flops: float, read: float) -> None:
        """Within a phase: products of so many floating-point operations, over weights of so many bytes."""
        ...


class Watcher(Protocol):
    """What is told of memory: the parts of a phase, and the owners of what is held."""

    def at(self, part: str) -> None:
        """`part` goes on from here until the next one, or the end of the phase."""
        ...

    def holds(self, owner: str, tensors: Iterable[Tensor]) -> None:
        """The memory of these tensors, with all that shares it, is the owner's."""
        ...

    def keeps(self, owner: str, count: int, keeper: object) -> None:
        """`count` bytes that no tensor shows are the owner's for as long as `keeper` lives."""
        ...


_listeners: list[Listener] = []
_watchers: list[Watcher] = []
_current: list[str] = []  # the phase that is going on and the part of it


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Mark what runs inside as the phase `name`."""
    for listener in _listeners:
        listener.started(name)
    _current[:] = [name]
    try:
        yield
    finally:
        for listener in _listeners:
            listener.ended(name)
    _current.clear()  # not after an error: it tells where that came from


def at(part: str) -> None:
    """Mark that the phase has come to a part of it."""
    if _current:
        _current[1:] = [part]
    for watcher in _watchers:
        watcher.at(part)


def holds(owner: str, tensors: Iterable[Tensor]) -> None:
    """Tell whose the tensors are."""
    for watcher in _watchers:
        watcher.holds(owner, tensors)


def keeps(owner: str, count: int, keeper: object) -> None:
    """Tell of memory outside of torch."""
    for watcher in _watchers:
        watcher.keeps(owner, count, keeper)


def current() -> str | None:
    """The part that is going on, or the phase where no part is marked; after an error, that which it came from, until
    `forget` or the next phase."""
    return _current[-1] if _current else None


def forget() -> None:
    """No phase is going on: what an error before has left does not count."""
    _current.clear()


def works(flops: float, read: float) -> None:
    """Tell of products that the phase cannot do without."""
    for listener in _listeners:
        listener.works(flops, read)


def heard() -> bool:
    """Whether somebody listens: counting work may then be worth its time."""
    return bool(_listeners)


@contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Tell `listener` of every mark meanwhile."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def watch(watcher: Watcher) -> Iterator[None]:
    """Tell `watcher` of parts and owners meanwhile."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)
