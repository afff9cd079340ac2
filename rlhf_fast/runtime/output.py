"""The folder that a run's results go to: whether it can be written, and that one run at a time does.

`alone` is where a run begins.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

from rlhf_fast.runtime.distributed import from_main
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.launch import start

LOCK = ".run.lock"
logger = logging.getLogger(__name__)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def refuse_unwritable(field: str, folder: str | Path) -> None:
    """Raise `UsageError` naming the config's `field` unless `folder` can be written, or made and then written.

    Nothing is created: the answer comes from the nearest folder that is there already. Of several processes only
    process 0 writes, and looks.
    """
    reason = from_main(lambda: _unwritable(folder))
    if reason is not None:
        raise UsageError(f"{field}={str(folder)!r} cannot be written: {reason}. Choose another folder.")


def alone(stage: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`stage(config, ...)`: connects the run's processes, and holds the config's `output_dir` while it runs."""

    @wraps(stage)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        config: Any = args[0] if args else kwargs["config"]
        start(use_cpu=config.use_cpu, timeout=config.ddp_timeout)
        with hold(Path(str(config.output_dir))):
            return stage(*args, **kwargs)

    return run


@contextmanager
def hold(output: Path) -> Iterator[None]:
    """Keep other runs out of the folder `output`, which is made if need be and goes again if nothing was written.

    Process 0 locks a file in it for all processes of the run; the system frees the lock however that process ends.
    Raises `UsageError`, in every process, where the folder cannot be written or another run holds it.
    """
    refuse_unwritable("output_dir", output)
    lock = _Lock(output)
    from_main(lock.take)
    try:
        yield
    finally:
        lock.free()


class _Lock:
    def __init__(self, output: Path) -> None:
        self.output, self.path = output, output / LOCK
        self.made: list[Path] = []
        self.file: IO[str] | None = None

    def take(self) -> None:
        self.made = [folder for folder in (self.output, *self.output.parents) if not folder.exists()]
        try:
            while self.file is None:
                self.output.mkdir(parents=True, exist_ok=True)
                self.file = self._open()
            self.file.truncate(0)
            json.dump({"pid": os.getpid(), "host": socket.gethostname()}, self.file)
            self.file.flush()
        except OSError as error:
            self.free()
            raise UsageError(
                f"cannot write {str(self.path)!r}: {error.strerror or error}. Make room, or choose another output_dir."
            ) from error

    def free(self) -> None:
        """The file goes while it is locked, so that nobody else's does; then what was made for it and stayed empty."""
        if self.file is not None:
            self.path.unlink(missing_ok=True)
            self.file.close()
            self.file = None
        with suppress(OSError):  # not empty
            for folder in self.made:
                folder.rmdir()

    def _open(self) -> IO[str] | None:
        """The locked file; None if the run that held it took it away meanwhile."""
        file = self.path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(file)
            file.close()
            raise UsageError(
                f"another run is going on in output_dir={str(self.output)!r}: {holder} holds {LOCK}. Wait for it, stop "
                "it, or choose another output_dir."
            ) from None
        except OSError as error:
            logger.warning(
                "%s cannot be locked (%s): a second run in this output_dir would not be noticed", self.path, error
            )
            return file
        if self.path.exists() and os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
            return file
        file.close()
        return None


def _holder(file: IO[str]) -> str:
    try:
        file.seek(0)
        facts: dict[str, Any] = json.load(file)
        return f"process {int(facts['pid'])} on {str(facts['host'])!r}"
    except (OSError, ValueError, KeyError, TypeError):  # it has the lock, and has not yet written who it is
        return "a process that has just started"


def _unwritable(folder: str | Path) -> str | None:
    path = Path(folder).expanduser().absolute()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not there.is_dir():
        return f"{there} is a file"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} may not be written"
    return None
