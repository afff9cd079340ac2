"""Files and folders that are there whole or not at all, whenever the process or the machine stops, and what is said
where the disk refuses one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from rlhf_fast.runtime.errors import UsageError, disk_remedy


@contextmanager
def disk_errors(what: str, left: str | Callable[[], str] = "") -> Iterator[None]:
    """Around what writes files: an error of the disk becomes a `UsageError` that names `what` could not be done, the
    remedy, and what is `left` (a sentence, or what gives one then)."""
    try:
        yield
    except Exception as error:
        if not _of_the_disk(error):
            raise
        after = left() if callable(left) else left
        raise UsageError(f"cannot {what}: {error}. {disk_remedy(error)} {after}".rstrip()) from error


def _of_the_disk(error: Exception) -> bool:
    """Libraries in Rust raise kinds of their own for it: safetensors, and tokenizers a bare `Exception`."""
    bare = type(error) is Exception and "(os error " in str(error)
    return bare or isinstance(error, (OSError, SafetensorError))


def temporary_of(path: Path) -> Path:
    """Where `path` is made before it gets its name, and goes before it is removed: hidden, in the same folder."""
    return path.with_name(f".{path.name}.tmp")


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make the folder `path`, which must not be there yet, of what `fill` writes into a temporary one."""
    temporary = _filled(path, fill)
    try:
        os.replace(temporary, path)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(path.parent)


def write_into(path: Path, fill: Callable[[Path], None], *, name: str) -> dict[str, int]:
    """Put the files that `fill` writes into a temporary folder, made under `name`, into the folder `path`, each whole
    over the one that was there. Returns their sizes in bytes by their names below `path`."""
    temporary = _filled(path / name, fill)
    sizes = {}
    try:
        for file in sorted(file for file in temporary.rglob("*") if file.is_file()):
            own = file.relative_to(temporary)
            sizes[own.as_posix()] = file.stat().st_size
            (path / own).parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, path / own)
            sync((path / own).parent)
    finally:
        shutil.rmtree(temporary)
    return sizes


def write_text(path: Path, text: str) -> None:
    """Replace the file `path`, or make it; where the disk refuses, it is as it was."""
    temporary = temporary_of(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def remove_folder(path: Path) -> None:
    """Take the folder's name away before its files, so that no half of it is ever taken for the whole."""
    temporary = temporary_of(path)
    shutil.rmtree(temporary, ignore_errors=True)
    os.replace(path, temporary)
    shutil.rmtree(temporary)


def _filled(path: Path, fill: Callable[[Path], None]) -> Path:
    """The temporary folder of `path`, with what `fill` writes, on the disk."""
    temporary = temporary_of(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        fill(temporary)
        for folder, _, names in os.walk(temporary):
            for name in names:
                sync(Path(folder, name))
            sync(Path(folder))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # half a model takes room that may be what is missing
        raise
    return temporary


def sync(path: Path) -> None:
    """Wait until the disk holds the file, or the names in the folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
