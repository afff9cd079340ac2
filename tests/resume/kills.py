"""Kill runs at random moments, resume them, and compare with the run that was not killed.

    python -m tests.resume.kills --count 20

A run is a process of its own. It is killed by SIGKILL, either after a random time, or by itself at a random one of the
calls that make a checkpoint durable (`os.fsync`, `os.replace`).
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from tests.forked import CONTEXT
from tests.resume.cases import STAGES, outcome, prepare, run

CALLS = "durable_calls"


@dataclass(frozen=True)
class Reference:
    """The run that nobody killed: what it left, how long it took, how many durable calls it made."""

    stage: str
    folder: Path
    outcome: dict[str, Any]
    seconds: float
    calls: int

    @classmethod
    def of(cls, stage: str, folder: Path) -> Reference:
        imports = CONTEXT.Process(target=_nothing)
        imports.start()
        imports.join()
        output, started = folder / f"{stage}-whole", time.perf_counter()
        process = _start(stage, folder, output)
        process.join()
        assert process.exitcode == 0, f"the run of {stage} ended with {process.exitcode}"
        seconds = time.perf_counter() - started
        return cls(stage, folder, outcome(output), seconds, int((output / CALLS).read_text()))


@dataclass(frozen=True)
class Kill:
    """How a run was killed (None where it was too late), where it then went on, and whether it ended the same."""

    stage: str
    how: str
    killed: bool
    checkpoints: list[str]
    same: bool


def kill_by_time(reference: Reference, output: Path, rng: random.Random) -> Kill:
    delay = rng.uniform(0.0, reference.seconds)
    process = _start(reference.stage, reference.folder, output)
    process.join(delay)
    if process.pid is not None and process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return _resume(reference, output, f"after {delay:.2f} of {reference.seconds:.2f} s", process.exitcode)


def kill_by_call(reference: Reference, output: Path, rng: random.Random) -> Kill:
    call = rng.randint(1, reference.calls)
    process = _start(reference.stage, reference.folder, output, kill_at=call)
    process.join()
    return _resume(reference, output, f"at durable call {call} of {reference.calls}", process.exitcode)


def _resume(reference: Reference, output: Path, how: str, exitcode: int | None) -> Kill:
    there = sorted(path.name for path in output.glob("*checkpoint-*")) if output.exists() else []
    process = _start(reference.stage, reference.folder, output, resume="auto")
    process.join()
    same = process.exitcode == 0 and outcome(output) == reference.outcome
    return Kill(reference.stage, how, exitcode == -signal.SIGKILL, there, same)


def _start(stage: str, folder: Path, output: Path, kill_at: int | None = None, resume: str | None = None) -> Any:
    process = CONTEXT.Process(target=_run, args=(stage, folder, output, kill_at, resume))
    process.start()
    return process


def _nothing() -> None:
    """The first child waits for the imports: its time would be no measure."""


def _run(stage: str, folder: Path, output: Path, kill_at: int | None, resume: str | None) -> None:
    """In the child: count the durable calls, and die at the one that was asked for, before it does anything."""
    torch.set_num_threads(1)
    calls = 0
    originals = {name: getattr(os, name) for name in ("fsync", "replace")}

    def counted(name: str, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        originals[name](*arguments)

    os.fsync = lambda descriptor: counted("fsync", descriptor)
    os.replace = lambda source, target: counted("replace", source, target)  # type: ignore[assignment]
    run(stage, folder, output, resume=resume, save_steps=1)
    (output / CALLS).write_text(str(calls))


def main() -> int:
    """Exit status 1 if a run did not end the same."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, kills = random.Random(given.seed), []
    with tempfile.TemporaryDirectory() as root:
        folder = prepare(Path(root))
        references = {stage: Reference.of(stage, folder) for stage in STAGES}
        for i in count():
            if sum(kill.killed for kill in kills) == given.count:
                break
            way = kill_by_call if i % 2 else kill_by_time
            kills.append(way(references[STAGES[i % len(STAGES)]], folder / f"kill-{i}", rng))
            kill = kills[-1]
            state = "bit for bit the same" if kill.same else "DIFFERENT"
            print(f"{i + 1:>3} {kill.stage:<7} {'killed' if kill.killed else 'ended '} {kill.how:<32} "
                  f"left {', '.join(kill.checkpoints) or 'no checkpoint'}: {state}", flush=True)  # fmt: skip
    same = sum(kill.same for kill in kills)
    print(f"{given.count} of {len(kills)} runs were killed; {same} of {len(kills)} ended bit for bit the same")
    return 0 if same == len(kills) else 1


if __name__ == "__main__":
    from tests.resume.kills import main as run_main  # children have to find these functions under an importable name

    sys.exit(run_main())
