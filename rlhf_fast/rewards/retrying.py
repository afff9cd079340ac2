"""Rewards from outside, which may hang, fail or answer badly: they are asked again, and then the run is stopped.

`within` waits for a call and `awaited` for a coroutine; a run that is asked to stop waits for neither.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import Tensor

from rlhf_fast.rewards.source import RewardBatch, RewardSource, checked
from rlhf_fast.runtime.errors import StepFailed, UsageError
from rlhf_fast.runtime.interrupt import stop_if_asked
from rlhf_fast.runtime.shown import printable, without_secrets

logger = logging.getLogger(__name__)
_LOOK = 0.2  # seconds between two looks at whether the run is to stop
_LONGEST_PAUSE = 30.0
_attempt = threading.local()  # `over`: an Event that is set once nobody waits for this thread's call any more


@dataclass
class RetryingReward:
    """Asks `source` up to 1 + `retries` times, each time for at most `timeout` seconds (None: for as long as it takes).

    An attempt fails if it raises, takes too long, or gives other than one finite number for each response. The pause
    before the next is `pause` seconds, then twice as long each time, up to half a minute.
    """

    source: RewardSource
    timeout: float | None
    retries: int
    pause: float = 1.0
    name: str = field(init=False)
    may_skip: bool = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.source.name
        self.may_skip = getattr(self.source, "may_skip", False)

    def score(self, batch: RewardBatch) -> Tensor:
        """Raises `StepFailed`, naming the last error, once every attempt has failed."""
        failed = 0
        while True:
            try:
                return within(self.timeout, lambda: checked(self.source, batch))
            except Exception as error:
                failed += 1
                what = self._told(error, failed)
                if failed > self.retries:
                    raise StepFailed(f"{what}.") from error
                pause = min(self.pause * 2 ** (failed - 1), _LONGEST_PAUSE)
                logger.warning("%s; asked again in %g s", what, pause)
                _wait(pause)

    def _told(self, error: Exception, attempt: int) -> str:
        reason = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
        reason = printable(without_secrets(reason)).rstrip(".")
        return f"reward {self.name!r} failed, attempt {attempt} of {1 + self.retries}: {reason}"


def within(seconds: float | None, call: Callable[[], Any]) -> Any:
    """What `call` returns or raises. Raises `TimeoutError` if that takes longer than `seconds`: with a limit, `call`
    runs in a thread of its own, which Python cannot end and which is left behind, unless it waits in `awaited`."""
    if seconds is None:
        return call()
    outcome: dict[str, Any] = {}
    over = threading.Event()

    def run() -> None:
        _attempt.over = over
        try:
            outcome["value"] = call()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    end = time.monotonic() + seconds
    try:
        while thread.is_alive() and (left := end - time.monotonic()) > 0:
            thread.join(min(left, _LOOK))
            stop_if_asked()
    finally:
        over.set()
    if "error" in outcome:
        raise outcome["error"]
    if "value" not in outcome:
        raise TimeoutError(f"no answer within {seconds:g} s (reward_timeout)")
    return outcome["value"]


def awaited(awaitable: Awaitable[Any]) -> Any:
    """What `awaitable` gives, on the event loop that all rewards of this process share: a client that keeps its
    connections from one call to the next stays on its loop. It is cancelled where the run is asked to stop, or where
    `within`, around this, has given up."""

    async def outcome() -> Any:
        return await awaitable

    over: threading.Event | None = getattr(_attempt, "over", None)
    future = asyncio.run_coroutine_threadsafe(outcome(), _loop())
    try:
        while not concurrent.futures.wait([future], _LOOK).done:
            stop_if_asked()
            if over is not None and over.is_set():
                raise TimeoutError("it was given up")
        return future.result()
    finally:
        future.cancel()


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """In a thread of its own: the run's may have a loop of its own, as in a notebook."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="async rewards", daemon=True).start()
    return loop


def _wait(seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        stop_if_asked()
        time.sleep(min(left, _LOOK))
