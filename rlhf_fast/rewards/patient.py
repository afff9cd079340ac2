"""Rewards from outside, which may hang, fail or answer badly: they are asked again, and then the run is stopped."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rlhf_fast.rewards.source import RewardBatch, RewardSource, checked
from rlhf_fast.runtime.errors import StepFailed, UsageError
from rlhf_fast.runtime.interrupt import give_way
from rlhf_fast.runtime.shown import printable, without_secrets

logger = logging.getLogger(__name__)
_LOOK = 0.2  # seconds between two looks at whether the run is to stop
_LONGEST_PAUSE = 30.0


@dataclass
class PatientReward:
    """Asks `source` up to 1 + `retries` times, each time for at most `timeout` seconds (None: for as long as it takes).

    An attempt fails if it raises, takes too long, or gives other than one finite number for each response. The pause
    before the next is `pause` seconds, then twice as long each time, up to half a minute.
    """

    source: RewardSource
    timeout: float | None
    retries: int
    pause: float = 1.0
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.source.name

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
    runs in a thread of its own, which Python cannot end and which is left behind."""
    if seconds is None:
        return call()
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = call()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    end = time.monotonic() + seconds
    while thread.is_alive() and (left := end - time.monotonic()) > 0:
        thread.join(min(left, _LOOK))
        give_way()
    if "error" in outcome:
        raise outcome["error"]
    if "value" not in outcome:
        raise TimeoutError(f"no answer within {seconds:g} s (reward_timeout)")
    return outcome["value"]


def _wait(seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        give_way()
        time.sleep(min(left, _LOOK))
