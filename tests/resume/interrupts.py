"""Runs of `cases.py` as processes of their own, which are sent signals at a chosen place."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Any

from rlhf_fast.preferences.fit import RewardTraining
from rlhf_fast.rollout.engine import Engine
from rlhf_fast.runtime.interrupt import Interrupted
from rlhf_fast.runtime.optimiser import Optimiser
from rlhf_fast.train.sft import SFT
from tests import forked
from tests.resume.cases import run

PLACES: dict[str, tuple[type, str, int]] = {
    "rollout": (Engine, "_decode", 8),
    "update": (Optimiser, "advance", 15),
    "first update": (Optimiser, "advance", 7),
    "sft micro-batch": (SFT, "loss", 3),
    "reward micro-batch": (RewardTraining, "loss", 4),
}
"""Where the signal is sent: before the n-th call of a method."""


def start(stage: str, folder: Path, output: Path, place: str, number: signal.Signals, count: int = 1) -> Any:
    """A run that is sent the signal `count` times; returns the finished process with its output as text."""
    return forked.run(interrupted, stage, folder, output, place, number, count)


def send_at(place: str, number: int, count: int) -> None:
    owner, name, due = PLACES[place]
    original, calls = getattr(owner, name), 0

    def method(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == due:
            for _ in range(count):
                os.kill(os.getpid(), number)
        return original(*arguments, **options)

    setattr(owner, name, method)


def interrupted(stage: str, folder: Path, output: Path, place: str, number: signal.Signals, count: int) -> int:
    """The exit status of the command line's."""
    logging.basicConfig(format="%(message)s")
    send_at(place, number, count)
    try:
        run(stage, folder, output)
    except Interrupted as stop:
        print(stop)
        return 128 + stop.signal
    except KeyboardInterrupt:
        return 130
    return 0
