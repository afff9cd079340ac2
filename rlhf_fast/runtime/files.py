"""Files on the disk: whole or not there at all, whenever the process or the machine stops; lines that grow while a run
goes on; results as JSON and back; and what is said where the disk refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from safetensors import SafetensorError

from rlhf_fast.runtime.errors import NotWritten, UsageError, disk_remedy


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


class Lines:
    """Appends to `path` after its first `keep` bytes, which stay; nothing is buffered, so closing it cannot fail.

    Every method but `close` raises `NotWritten` if the disk refuses.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        self.path = path
        with self._told():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("ab", buffering=0)
        self.cut(keep)

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """One line for each row. Where the disk refuses, a piece of a line may stand at the end."""
        text = "".join(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n" for row in rows)
        left = memoryview(text.encode())
        with self._told():
            while left:
                left = left[self.file.write(left) :]

    def cut(self, size: int) -> None:
        """Keep the first `size` bytes."""
        with self._told():
            self.file.truncate(size)

    def sync(self) -> int:
        """Wait until the disk holds what was appended; returns the file's size in bytes."""
        with self._told():
            os.fsync(self.file.fileno())
            return os.fstat(self.file.fileno()).st_size

    def close(self) -> None:
        self.file.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise NotWritten(f"cannot write to {str(self.path)!r}: {reason}. {disk_remedy(error)}") from error


T = TypeVar("T")


def write_record(path: str | Path, record: Any) -> None:
    """Write a dataclass or dict as JSON, the whole file or nothing; a number that JSON cannot hold (NaN, infinity)
    becomes null. Raises `OSError` if the disk refuses."""
    value = dataclasses.asdict(record) if dataclasses.is_dataclass(record) and not isinstance(record, type) else record
    write_text(Path(path), json.dumps(_finite(value), indent=2, ensure_ascii=False) + "\n")


def read_record(path: str | Path, kind: type[T], key: str | None = None) -> T:
    """The dataclass `kind` in the file (under `key`, if given). Raises `UsageError` for a file that holds none."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        return build_record(kind, value if key is None else value[key])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"cannot read {str(path)!r}: {type(error).__name__}: {error}. Expected a result written by this version; "
            "run the stage again."
        ) from error


def build_record(kind: Any, value: Any) -> Any:
    """`value`, as JSON or `dataclasses.asdict` gives it, as the type `kind`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        return None if value is None else build_record(inner[0], value) if len(inner) == 1 else value
    if origin is list:
        return [build_record(arguments[0], item) for item in value]
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{f.name: build_record(hints[f.name], value[f.name]) for f in dataclasses.fields(kind)})  # type: ignore[operator]
    if kind is float:
        return math.nan if value is None else float(value)
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
