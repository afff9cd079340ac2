"""Marks in a run: which phase is going on, and how much arithmetic it asks for. They are free where nobody listens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Listener(Protocol):
    """What is told of the marks. Phases do not nest."""

    def started(self, phase: str) -> None: ...

    def ended(self, phase: str) -> None: ...

    def works(self, flops: float, read: float) -> None:
        """Within a phase: products of so many floating-point operations, over weights of so many bytes."""
        ...


_listeners: list[Listener] = []


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Mark what runs inside as the phase `name`."""
    for listener in _listeners:
        listener.started(name)
    try:
        yield
    finally:
        for listener in _listeners:
            listener.ended(name)


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
