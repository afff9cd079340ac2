"""Files of JSON lines that grow while a run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_fast.runtime.errors import NotWritten, disk_remedy


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
