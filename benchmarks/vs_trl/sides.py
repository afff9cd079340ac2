"""The rows of the comparison, and how one runs: a process that takes a job and leaves a result."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import environments
from benchmarks.vs_trl.jobs import Job
from benchmarks.vs_trl.ours import CRITICS
from benchmarks.vs_trl.report import Run

TRL = environments.ROOT / ".venv-trl"
PACKAGES = ("trl==1.12.0", environments.same("transformers"), environments.same("peft"), "pytest", "psutil")


@dataclass(frozen=True)
class Side:
    """A row: the module that runs a job, and what it takes for it. `micro_batch` None: its default."""

    module: str
    critic: str
    micro_batch: int | None = None


SIDES = {
    f"TRL, {critic} critic, micro-batch {size}": Side("benchmarks.vs_trl.theirs", critic, size)
    for critic in ("full", "adapter")
    for size in (4, 16)
} | {f"rlhf_fast, {critic} critic": Side("benchmarks.vs_trl.ours", critic) for critic in CRITICS}


def run(name: str, side: Side, job: Job, round_: int, folder: Path, trl: Path) -> Run:
    """One process. What it prints goes to a log beside its result; `RuntimeError` names that if the process fails."""
    stem = f"{name.replace(', ', '-').replace(' ', '-')}-{round_}"
    asked, result, log = (folder / f"{stem}.{end}" for end in ("job.json", "result.json", "log"))
    job.write(asked)
    python = str(trl) if side.module.endswith("theirs") else sys.executable
    environment = os.environ | {"PYTHONPATH": environments.PATH, "HF_HUB_OFFLINE": "1"}
    with log.open("w") as out:
        done = subprocess.run(
            [python, "-m", side.module, str(asked), str(result)], env=environment, stdout=out, stderr=subprocess.STDOUT
        )
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}; the end of {log}:\n{log.read_text()[-2000:]}")
    return Run.read(result, name, round_)
