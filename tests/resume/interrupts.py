"""Runs of `cases.py` as processes of their own, which are sent signals at a chosen place.

python -m tests.resume.interrupts STAGE FOLDER OUTPUT PLACE SIGNAL COUNT
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from rlhf_fast.preferences.fit import RewardTraining
from rlhf_fast.rollout.engine import Engine
from rlhf_fast.runtime.interrupt import Interrupted
from rlhf_fast.runtime.optimiser import Optimiser
from rlhf_fast.train.sft import SFT
from tests.resume.cases import run

ROOT = Path(__file__).parents[2]
PLACES: dict[str, tuple[type, str, int]] = {
    "rollout": (Engine, "_decode", 8),
    "update": (Optimiser, "step", 15),
    "first update": (Optimiser, "step", 7),
    "sft micro-batch": (SFT, "loss", 3),
    "reward micro-batch": (RewardTraining, "loss", 4),
}
"""Where the signal is sent: before the n-th call of a method."""


def start(stage: str, folder: Path, output: Path, place: str, number: signal.Signals, count: int = 1) -> Any:
    """A run that is sent the signal `count` times; returns the finished process with its output as text."""
    command = [
        sys.executable,
        "-m",
        "tests.resume.interrupts",
        stage,
        str(folder),
        str(output),
        place,
        str(number.value),
    ]
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*command, str(count)], cwd=ROOT, env=os.environ | path, capture_output=True, text=True, timeout=300
    )


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


def main() -> int:
    """The exit status of the command line's."""
    stage, folder, output, place, number, count = sys.argv[1:]
    logging.basicConfig(format="%(message)s")
    torch.set_num_threads(1)
    send_at(place, int(number), int(count))
    try:
        run(stage, Path(folder), Path(output))
    except Interrupted as stop:
        print(stop)
        return 128 + stop.signal
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
