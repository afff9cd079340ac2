"""The checkpoints that a run leaves: when one is written, what is in it, which are kept."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from safetensors import safe_open

from rlhf_fast.runtime.checkpoint import (
    RandomState,
    State,
    Stateful,
    clean,
    list_checkpoints,
    path_of,
    read_state,
    step_of,
    write_checkpoint,
)
from rlhf_fast.runtime.config import StageConfig
from rlhf_fast.runtime.distributed import from_main, is_main, main_only, tensors_from_main, wait_for_all
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.files import disk_errors, remove_folder, sync, write_into, write_text
from rlhf_fast.runtime.identity import refuse_other_weights
from rlhf_fast.runtime.interrupt import asked, stop_if_asked
from rlhf_fast.runtime.optimiser import Optimiser
from rlhf_fast.runtime.resume import ENDED_EARLY, FINISHED, Start
from rlhf_fast.runtime.tracking import METRICS_FILE

RESULTS = "results"  # the name under which they are made
RECORDS = ("reward_model.json", "report.html", "profile")  # what stages write into the output folder themselves
logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a run of `total` steps.

    parts: what a checkpoint holds and restores, by name; the random generators are added. save: writes the model into a
    folder. `done` is the number of steps that earlier processes took; their metrics stand in the output folder again.
    `taken` counts this process's steps, too. undo: keep a copy of the "optimiser" and what it trains from before a
    step, so that one that is given up may have changed them. Of several processes, which have to agree on what the run
    is, all restore what process 0 reads, and that one writes. Raises `UsageError` where they do not agree.
    """

    def __init__(
        self, config: StageConfig, start: Start, total: int,
        parts: Mapping[str, Stateful], save: Callable[[Path], None], *, undo: bool = False,
    ) -> None:  # fmt: skip
        self.config, self.identity, self.total, self.save = config, start.identity, total, save
        self.undo = undo
        self.before: dict[str, State] = {}
        self.parts: dict[str, Stateful] = {**parts, "random": RandomState()}
        self.output = Path(str(config.output_dir))
        self.written: dict[str, int] = {}  # bytes of each file of the results
        refuse_other_weights(State.join({k: part.state() for k, part in parts.items()}))
        self.every = math.ceil(config.save_steps * total) if config.save_steps < 1 else int(config.save_steps)
        self.best: dict[str, Any] | None = None
        saved = None if start.path is None else _read(start.path)
        self.taken = self.done = 0 if saved is None else self._step_of(saved, start.path)
        with self.disk_errors(f"prepare {str(self.output)!r}"):
            if is_main():
                self.output.mkdir(parents=True, exist_ok=True)
                self._discard_later()
            if saved is not None and start.path is not None:
                self._restore(saved, start.path)
            if is_main():
                self._prune()  # a process that was killed before it did

    def remaining(self) -> Iterator[int]:
        """The steps to take, counted from 1. What a step that is given up has to leave as it was is kept meanwhile."""
        for step in range(self.done + 1, self.total + 1):
            kept = [name for name in self.parts if self.undo or name != "optimiser"]
            self.before = {name: self.parts[name].state().copy() for name in kept}
            self.begun = self._begun()
            yield step

    def after(self, step: int, metrics: dict[str, float], *, due: bool | None = None) -> None:
        """Write a checkpoint if one is due after `step`, or a signal came, and remove those that are not kept any more.

        due: None leaves it to the config. If a signal came, the step is the last (`rlhf_fast.runtime.interrupt`).
        """
        self.taken, self.before, self.begun = step, {}, self._begun()
        name, saves = self.config.metric_for_best_model, self.config.save_strategy != "no"
        if name is not None and step == 1 and name not in metrics:
            raise UsageError(
                f"metric_for_best_model={name!r} is no metric of a step; there are: {', '.join(sorted(metrics))}."
            )
        if due is None:
            due = saves and (step % self.every == 0 or step == self.total)
        if due and name is not None:
            self._compare(step, name, metrics.get(name, math.nan))
        if due or (saves and asked()):
            self._write()
        stop_if_asked()

    @main_only
    def save_results(self) -> None:
        """Write the model into the output folder, each file whole. Raises `UsageError` if the disk refuses; it can be
        done again."""
        with self.disk_errors(f"write the results to {str(self.output)!r}"):
            self.written |= write_into(self.output, self.save, name=RESULTS)

    def finish(self) -> None:
        """Say on disk that the results are saved, and return once that is done. Raises `UsageError` if the disk
        refuses, or does not hold the results as they were written."""
        if is_main():
            with self.disk_errors(f"finish the run in {str(self.output)!r}"):
                for path in self.output.iterdir():
                    if path.is_file():
                        sync(path)
                for name, size in self.written.items():
                    _check(self.output / name, size)
                told = self.identity | ({ENDED_EARLY: self.taken} if self.taken < self.total else {})
                write_text(self.output / FINISHED, json.dumps(told, indent=2) + "\n")
        wait_for_all()

    def disk_errors(self, what: str) -> AbstractContextManager[None]:
        """Around what writes files: an error of the disk becomes a `UsageError` that says what is saved."""
        return disk_errors(what, self.how_to_go_on)

    def page_errors(self, file: str) -> AbstractContextManager[None]:
        """The same around a file beside the model, once that is saved."""

        def left() -> str:
            saved = f"The model in {self.output} is saved."
            return f"{saved} {self.how_to_go_on()}" if list_checkpoints(self.output) else saved

        return disk_errors(f"write {str(self.output / file)!r}", left)

    @main_only
    def save_before(self) -> None:
        """Write the checkpoint of the last whole step; what one that is given up has changed is taken back.

        Nothing if it was written, the config wants none, or the changes cannot be taken back.
        """
        cannot = not self.undo and self._begun() != self.begun
        if cannot or self.config.save_strategy == "no":
            return
        if self.taken and not path_of(self.output, self.taken).exists():
            for name, state in self.before.items():
                self.parts[name].load_state(state)
            self._write()

    def how_to_go_on(self) -> str:
        """A sentence about the newest checkpoint."""
        if not is_main():
            return "Process 0 says what is saved."
        saved = list_checkpoints(self.output)
        if not saved:
            return "There is no checkpoint, so the run has to start again."
        return f"{saved[0]} is whole: go on with the same command and --resume auto (resume='auto' from Python)."

    def _begun(self) -> int:
        optimiser = self.parts.get("optimiser")
        return optimiser.begun if isinstance(optimiser, Optimiser) else 0

    @main_only
    def _write(self) -> None:
        state = State.join({key: part.state() for key, part in self.parts.items()})
        state.facts["run"] = {"step": self.taken, "identity": self.identity, "best": self.best}
        write_checkpoint(path_of(self.output, self.taken), state, self._fill)
        with self.disk_errors("remove an older checkpoint"):
            self._prune()

    def _step_of(self, saved: State, path: Path | None) -> int:
        step = saved.facts["run"]["step"]
        if step > self.total:
            raise UsageError(
                f"{path} is of step {step} and the run has {self.total} steps in all. Raise num_train_epochs "
                "or total_episodes, or start another run in another output_dir."
            )
        return step

    def _restore(self, state: State, path: Path) -> None:
        for name, part in self.parts.items():
            part.load_state(state.part(name))
        best = state.part("run").facts["best"]
        if best and best["metric"] == self.config.metric_for_best_model:
            self.best = best
        if is_main():
            write_text(self.output / METRICS_FILE, (path / METRICS_FILE).read_text(encoding="utf-8"))
        logger.info("resumed from %s: step %d of %d is done", path, self.done, self.total)

    def _discard_later(self) -> None:
        """Remove what this run is about to write anew, and what an interrupted write left."""
        clean(self.output, (FINISHED, METRICS_FILE, RESULTS, *RECORDS))
        for path in list_checkpoints(self.output):
            if step_of(path) > self.done:
                remove_folder(path)
        (self.output / FINISHED).unlink(missing_ok=True)

    def _fill(self, folder: Path) -> None:
        self.save(folder)
        shutil.copyfile(self.output / METRICS_FILE, folder / METRICS_FILE)

    def _compare(self, step: int, name: str, value: float) -> None:
        sign = 1 if self.config.greater_is_better else -1
        if math.isfinite(value) and (self.best is None or sign * value > sign * self.best["value"]):
            self.best = {"metric": name, "value": value, "step": step}

    def _prune(self) -> None:
        limit = self.config.save_total_limit
        for path in list_checkpoints(self.output)[limit:] if limit else ():
            if self.best is None or step_of(path) != self.best["step"]:
                remove_folder(path)


def _check(path: Path, size: int) -> None:
    """Raise `OSError` unless the file has `size` bytes and, of weights, a header that fits them."""
    if path.stat().st_size != size:
        raise OSError(f"{path} has {path.stat().st_size} bytes of the {size} that were written")
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as weights:
            weights.keys()


def _read(path: Path) -> State:
    """The state in a checkpoint, as process 0 reads it."""
    state = read_state(path) if is_main() else State()
    return State(tensors_from_main(state.tensors), from_main(lambda: state.facts))
