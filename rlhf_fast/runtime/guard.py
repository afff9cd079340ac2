"""What ends a run before its last step, how it is told, and what is saved then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from signal import Signals

from rlhf_fast.runtime.distributed import LostProcess
from rlhf_fast.runtime.errors import NotWritten, StepFailed, UsageError
from rlhf_fast.runtime.interrupt import Abandoned, Interrupted, asked, listening
from rlhf_fast.runtime.out_of_memory import explain, is_out_of_memory
from rlhf_fast.runtime.saving import Checkpoints


@contextmanager
def guard(checkpoints: Checkpoints, held: Callable[[], Mapping[str, int]] = dict) -> Iterator[None]:
    """Around the steps: SIGINT and SIGTERM save the run and raise `Interrupted`; a step that is given up saves the run
    as before it; errors say what is saved and how to go on.

    held: bytes of memory that the run holds all the time, by name, for the case that there is not enough.
    """
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
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            checkpoints.save_before()
            raise UsageError(f"{explain(error, held())} {checkpoints.how_to_go_on()}") from error


def _interrupted(checkpoints: Checkpoints, number: Signals) -> Interrupted:
    what = f"stopped by {number.name} after step {checkpoints.taken} of {checkpoints.total}."
    return Interrupted(f"{what} {checkpoints.how_to_go_on()}", number)
