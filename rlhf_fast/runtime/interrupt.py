"""Stopping a run by a signal: SIGINT (Ctrl-C) or SIGTERM asks, and the run stops where its state is whole.

The first signal only asks. From then on SIGINT acts as it did before, so a second Ctrl-C stops at once; SIGTERM does
nothing more, as a scheduler and a launcher may both send it.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_asked: signal.Signals | None = None


class Interrupted(KeyboardInterrupt):
    """A run was stopped by `signal`; the message says after which step, what is saved and how to go on."""

    def __init__(self, message: str, number: signal.Signals) -> None:
        super().__init__(message)
        self.signal = number


class Abandoned(BaseException):
    """Within a step that `signal` asked to stop, where it can be given up.

    Code that takes every `Exception` for a failure lets it through.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.signal = number


def asked() -> signal.Signals | None:
    """The signal that asked the run to stop, if one did."""
    return _asked


def stop_if_asked() -> None:
    """Raise `Abandoned` if the run was asked to stop. For places in a step at which nothing that a checkpoint holds has
    changed yet, or where the run takes it back (`Checkpoints`, undo)."""
    if _asked is not None:
        raise Abandoned(_asked)


@contextmanager
def listening() -> Iterator[None]:
    """Let SIGINT and SIGTERM ask meanwhile. A signal that was ignored stays ignored, and outside the main thread,
    where Python takes no signals, nothing changes."""
    global _asked
    before = {} if threading.current_thread() is not threading.main_thread() else _taken()

    def ask(number: int, frame: FrameType | None) -> None:
        global _asked
        if _asked is not None:
            return
        _asked = signal.Signals(number)
        _restore({number: handler for number, handler in before.items() if number == signal.SIGINT})
        logger.warning("%s: the run is about to stop; Ctrl-C (SIGINT) now stops it at once", _asked.name)

    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        _restore(before)
        _asked = None


def _taken() -> dict[signal.Signals, signal._HANDLER]:
    """What these signals do now, but for those that are ignored or whose handler is not Python's to restore."""
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    return {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}


def _restore(handlers: dict[signal.Signals, signal._HANDLER]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
