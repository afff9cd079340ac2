"""A run that only counts its steps, for what checkpoints do around any run."""

from __future__ import annotations

from pathlib import Path

import torch

from rlhf_fast.runtime.checkpoint import State, list_checkpoints
from rlhf_fast.runtime.config import StageConfig
from rlhf_fast.runtime.loop import guard
from rlhf_fast.runtime.resume import choose_start
from rlhf_fast.runtime.saving import Checkpoints
from rlhf_fast.runtime.tracking import Tracker


class Counter:
    """A part of a run that counts its steps, in a number and in a tensor."""

    def __init__(self) -> None:
        self.count, self.vector = 0, torch.zeros(3)

    def step(self) -> None:
        self.count += 1
        self.vector += 1

    def state(self) -> State:
        return State({"vector": self.vector}, {"count": self.count})

    def load_state(self, state: State) -> None:
        self.count = state.facts["count"]
        self.vector = state.tensors["vector"].clone()


def save_model(folder: Path) -> None:
    (folder / "model").write_text("m")


def count(
    output, steps: int = 6, *, losses=(0.5,) * 6, until: int | None = None, save=save_model, **options
) -> Counter:
    """A run that only counts; `until` leaves it unfinished after that step."""
    config = StageConfig(**({"output_dir": str(output), "use_cpu": True, "save_steps": 1} | options))
    counter = Counter()
    start = choose_start(config, {})
    checkpoints = Checkpoints(config, start, steps, {"counter": counter}, save)
    with Tracker(output, "count", steps, {}, done=checkpoints.done, quiet=True) as tracker, guard(checkpoints, dict):
        for step in checkpoints.remaining():
            counter.step()
            tracker.log(step, {"loss": losses[step - 1]})
            checkpoints.after(step, {"loss": losses[step - 1]})
            if step == until:
                return counter
    checkpoints.save_results()
    checkpoints.finish()
    return counter


def names(output) -> list[str]:
    return [path.name for path in list_checkpoints(output)]
