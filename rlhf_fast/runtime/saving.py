"""The checkpoints that a run leaves: when one is written, what is in it, which are kept."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from signal import Signals
from typing import Any

from safetensors import SafetensorError

from rlhf_fast.runtime.checkpoint import (
    clean,
    list_checkpoints,
    path_of,
    read_facts,
    read_state,
    step_of,
    write_checkpoint,
)
from rlhf_fast.runtime.config import StageConfig
from rlhf_fast.runtime.durable import remove_folder, write_text
from rlhf_fast.runtime.errors import NotWritten, StepFailed, UsageError
from rlhf_fast.runtime.interrupt import Abandoned, Interrupted, asked, listening
from rlhf_fast.runtime.out_of_memory import explain, is_out_of_memory
from rlhf_fast.runtime.random_state import RandomState
from rlhf_fast.runtime.resume import FINISHED, Start
from rlhf_fast.runtime.state import State, Stateful
from rlhf_fast.runtime.tracking import METRICS_FILE

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a run of `total` steps.

    parts: what a checkpoint holds and restores, by name; the random generators are added. save: writes the model into a
    folder. `done` is the number of steps that earlier processes took; their metrics stand in the output folder again.
    `taken` counts this process's steps, too. undo: keep a copy of the parts from before a step, so that one that is
    given up may have changed them; else only the random generators are taken back.
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
        self.output.mkdir(parents=True, exist_ok=True)
        self.every = math.ceil(config.save_steps * total) if config.save_steps < 1 else int(config.save_steps)
        self.best: dict[str, Any] | None = None
        self.done = 0 if start.path is None else self._step_of(start.path)
        self.taken = self.done
        self._discard_later()
        if start.path is not None:
            self._restore(start.path)

    def remaining(self) -> Iterator[int]:
        """The steps to take, counted from 1. What a step that is given up has to leave as it was is kept meanwhile."""
        for step in range(self.done + 1, self.total + 1):
            kept = self.parts if self.undo else ("random",)
            self.before = {name: self.parts[name].state().copy() for name in kept}
            yield step
        self.before = {}

    @contextmanager
    def guard(self, held: Callable[[], Mapping[str, int]] = dict) -> Iterator[None]:
        """Around the steps: SIGINT and SIGTERM save the run and raise `Interrupted`; a step that is given up saves the
        run as before it; errors say what is saved and how to go on.

        held: bytes of memory that the run holds all the time, by name, for the case that there is not enough.
        """
        with listening():
            try:
                yield
            except Abandoned as stop:
                self._save_before()
                raise self._interrupted(stop.signal) from None
            except StepFailed as error:
                self._save_before()
                raise UsageError(f"{error} {self._how_to_go_on()}") from error
            except NotWritten as error:
                raise UsageError(f"{error} Make room. {self._how_to_go_on()}") from error
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.undo:
                    self._save_before()
                raise UsageError(f"{explain(error, held())} {self._how_to_go_on()}") from error

    def after(self, step: int, metrics: dict[str, float]) -> None:
        """Write a checkpoint if one is due after `step`, or a signal came, and remove those that are not kept any more.

        Raises `Interrupted` if a signal came.
        """
        name = self.config.metric_for_best_model
        if name is not None and step == 1 and name not in metrics:
            raise UsageError(
                f"metric_for_best_model={name!r} is no metric of a step; there are: {', '.join(sorted(metrics))}."
            )
        self.taken, number = step, asked()
        due = step % self.every == 0 or step == self.total
        if due and name is not None:
            self._compare(step, name, metrics.get(name, math.nan))
        if due or number is not None:
            self._write()
        if number is not None:
            raise self._interrupted(number)

    def save_results(self) -> None:
        """Write the model into the output folder. Raises `UsageError` if the disk refuses; it can be done again."""
        try:
            self.save(self.output)
        except (OSError, SafetensorError) as error:
            raise UsageError(
                f"cannot write the results to {str(self.output)!r}: {error}. Make room. {self._how_to_go_on()}"
            ) from error

    def finish(self) -> None:
        """Say on disk that the results are saved."""
        write_text(self.output / FINISHED, json.dumps(self.identity, indent=2) + "\n")

    def _write(self) -> None:
        """The checkpoint of the step that was taken last, unless none are written."""
        if self.config.save_strategy == "no":
            return
        state = State.join({key: part.state() for key, part in self.parts.items()})
        state.facts["run"] = {"step": self.taken, "identity": self.identity, "best": self.best}
        write_checkpoint(path_of(self.output, self.taken), state, self._fill)
        self._prune()

    def _save_before(self) -> None:
        """Take back what the step has changed, and write the checkpoint of the one before."""
        if self.taken and not path_of(self.output, self.taken).exists():
            for name, state in self.before.items():
                self.parts[name].load_state(state)
            self._write()

    def _interrupted(self, number: Signals) -> Interrupted:
        what = f"stopped by {number.name} after step {self.taken} of {self.total}."
        return Interrupted(f"{what} {self._how_to_go_on()}", number)

    def _how_to_go_on(self) -> str:
        saved = list_checkpoints(self.output)
        if not saved:
            return "There is no checkpoint, so the run has to start again."
        return f"{saved[0]} is whole: go on with the same command and --resume auto (resume='auto' from Python)."

    def _step_of(self, path: Path) -> int:
        step = read_facts(path)["run"]["step"]
        if step > self.total:
            raise UsageError(
                f"{path} is of step {step} and the run has {self.total} steps in all. Raise num_train_epochs "
                "or total_episodes, or start another run in another output_dir."
            )
        return step

    def _restore(self, path: Path) -> None:
        state = read_state(path)
        for name, part in self.parts.items():
            part.load_state(state.part(name))
        best = state.part("run").facts["best"]
        if best and best["metric"] == self.config.metric_for_best_model:
            self.best = best
        write_text(self.output / METRICS_FILE, (path / METRICS_FILE).read_text(encoding="utf-8"))
        logger.info("resumed from %s: step %d of %d is done", path, self.done, self.total)

    def _discard_later(self) -> None:
        """Remove what this run is about to write anew, and what an interrupted write left."""
        clean(self.output)
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
