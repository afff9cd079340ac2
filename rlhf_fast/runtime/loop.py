"""The training loop, for every stage and for `PPOTrainer`.

    start = choose_start(config, inputs)        (`rlhf_fast.runtime.resume`) before models are opened
    checkpoints = train(run, start)             the steps that are left, with progress, metrics, checkpoints and signals
    finish(checkpoints, pages)                  the results, whole on disk, and only then the word that they are

What a stage gives is a `Run`; what is done around a step beside that is in its `Hooks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from signal import Signals
from types import MappingProxyType

import torch

from rlhf_fast.runtime.checkpoint import Stateful
from rlhf_fast.runtime.config import StageConfig
from rlhf_fast.runtime.distributed import LostProcess, is_main, main_only
from rlhf_fast.runtime.errors import NotWritten, StepFailed, UsageError
from rlhf_fast.runtime.interrupt import Abandoned, Interrupted, asked, listening
from rlhf_fast.runtime.memory import explain, is_out_of_memory
from rlhf_fast.runtime.optimiser import Optimiser
from rlhf_fast.runtime.passes import too_few
from rlhf_fast.runtime.phases import forget
from rlhf_fast.runtime.resume import Start
from rlhf_fast.runtime.saving import Checkpoints
from rlhf_fast.runtime.tracking import Tracker, say_start


class Hooks:
    """What a stage does around its steps."""

    def begin(self, done: int) -> dict[str, float]:
        """Before the first step, after `done` of an earlier process. Returns metrics of the start, if there are any."""
        return {}

    def after(self, end_step: Callable[..., None]) -> None:
        """After a step. Has to call `end_step(due=None)`, which writes a checkpoint if one is due and stops the run if
        it was asked to."""
        end_step()

    def stops(self) -> bool:
        """Whether the step that was taken is the last."""
        return False

    def end(self) -> None:
        """After the last step."""


@dataclass
class Run:
    """What the loop has to know of a stage."""

    name: str  # what it is called in what is shown
    config: StageConfig
    steps: int  # in all
    step: Callable[[int], dict[str, float]]  # takes a step, counted from 1, and returns its metrics
    save: Callable[[Path], None]  # writes the model into a folder, in process 0
    optimiser: Optimiser  # its state is part of a checkpoint
    device: torch.device  # whose memory is shown
    facts: Mapping[str, str]  # what the run is, in words, by topic
    longer_by: str  # the fields of the config that make more steps
    progress: dict[str, str]  # short names of the metrics that progress shows
    held: Callable[[], Mapping[str, int]]  # bytes that are held all the time, by name
    saved: Mapping[str, Stateful] = field(default_factory=dict)  # in a checkpoint, beside optimiser and random state
    can_undo: bool = False  # keep a copy of what is trained, to give up a step that has changed it
    contexts: Sequence[AbstractContextManager[object]] = ()  # entered before the first step and left at the end
    hooks: Hooks = field(default_factory=Hooks)


def train(run: Run, start: Start) -> Checkpoints:
    """Take the steps of `run` that are left from `start`.

    Raises `Interrupted` after a signal, and `UsageError` for a step that failed, ran out of memory or could not be
    written, each with what is saved and how to go on.
    """
    saved = {**run.saved, "optimiser": run.optimiser}
    checkpoints = Checkpoints(run.config, start, run.steps, saved, main_only(run.save), undo=run.can_undo)
    say_start(run.name, run.facts, too_few(run.steps, run.longer_by) if run.longer_by else "")
    quiet = bool(run.config.disable_tqdm)
    with ExitStack() as stack:
        for context in run.contexts:
            stack.enter_context(context)
        tracker = stack.enter_context(
            Tracker(
                checkpoints.output, run.name, run.steps, run.progress,
                done=checkpoints.done, quiet=quiet, device=run.device,
            )
        )  # fmt: skip
        stack.enter_context(guard(checkpoints, run.held, run.device))
        if first := run.hooks.begin(checkpoints.done):
            tracker.log(0, first)
        for step in checkpoints.remaining():  # copies what a step that is given up has to leave as it was
            run.optimiser.refuse_stuck()
            metrics = run.step(step)
            tracker.log(step, metrics)  # before its checkpoint, which has a copy of the metrics
            run.hooks.after(partial(checkpoints.after, step, metrics))
            if run.hooks.stops():
                break
        run.optimiser.refuse_stuck()  # the last steps, too
        run.hooks.end()
    return checkpoints


def finish(checkpoints: Checkpoints, pages: Mapping[str, Callable[[], object]] = MappingProxyType({})) -> None:
    """Write the results, then in process 0 what is said of them (by the name of the file), then that the run is
    finished."""
    checkpoints.save_results()
    if is_main():
        for name, write in pages.items():
            with checkpoints.page_errors(name):
                write()
    checkpoints.finish()


@contextmanager
def guard(
    checkpoints: Checkpoints, held: Callable[[], Mapping[str, int]], device: torch.device | None = None
) -> Iterator[None]:
    """Around the steps: SIGINT and SIGTERM save the run and raise `Interrupted`; a step that is given up saves the run
    as before it; errors say what is saved and how to go on.

    held: bytes of memory that the run holds, by name, for the case that there is not enough on `device`.
    """
    forget()
    with listening():
        try:
            yield
        except Abandoned as stop:
            checkpoints.save_before()
            raise _interrupted(checkpoints, stop.signal) from None
        except LostProcess as error:
            checkpoints.save_before()
            if (number := asked()) is not None:  # the others were asked, too, and stopped first
                raise _interrupted(checkpoints, number) from error
            raise LostProcess(f"{error} {checkpoints.how_to_go_on()}") from error
        except StepFailed as error:
            checkpoints.save_before()
            raise UsageError(f"{error} {checkpoints.how_to_go_on()}") from error
        except NotWritten as error:
            raise UsageError(f"{error} {checkpoints.how_to_go_on()}") from error
        except (MemoryError, RuntimeError) as error:  # a lost process is a RuntimeError, too, and was told above
            if not is_out_of_memory(error):
                raise
            checkpoints.save_before()
            raise UsageError(f"{explain(error, held(), device)} {checkpoints.how_to_go_on()}") from error


def _interrupted(checkpoints: Checkpoints, number: Signals) -> Interrupted:
    what = f"stopped by {number.name} after step {checkpoints.taken} of {checkpoints.total}."
    return Interrupted(f"{what} {checkpoints.how_to_go_on()}", number)
