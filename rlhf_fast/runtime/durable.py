"""Files and folders that are there whole or not at all, whenever the process or the machine stops."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def temporary_of(path: Path) -> Path:
    """Where `path` is made before it gets its name, and goes before it is removed: hidden, in the same folder."""
    return path.with_name(f".{path.name}.tmp")


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make the folder `path`, which must not be there yet, of what `fill` writes into a temporary one."""
    temporary = temporary_of(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    fill(temporary)
    for folder, _, names in os.walk(temporary):
        for name in names:
            _sync(Path(folder, name))
        _sync(Path(folder))
    os.replace(temporary, path)
    _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace the file `path`, or make it."""
    temporary = temporary_of(path)
    temporary.write_text(text, encoding="utf-8")
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def remove_folder(path: Path) -> None:
    """Take the folder's name away before its files, so that no half of it is ever taken for the whole."""
    temporary = temporary_of(path)
    shutil.rmtree(temporary, ignore_errors=True)
    os.replace(path, temporary)
    shutil.rmtree(temporary)


def _sync(path: Path) -> None:
    """Wait until the disk holds the file, or the names in the folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
