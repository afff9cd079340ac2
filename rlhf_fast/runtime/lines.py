"""Files of JSON lines that grow while a run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlhf_fast.runtime.errors import NotWritten


class Lines:
    """Appends to `path` after its first `keep` bytes, which stay; nothing is buffered, so closing it cannot fail."""

    def __init__(self, path: Path, keep: int = 0) -> None:
        self.path = path
        self.file = path.open("ab", buffering=0)
        self.cut(keep)

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """One line for each row. Raises `NotWritten` if the disk refuses; a piece of a line may then stand at the
        end."""
        text = "".join(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n" for row in rows)
        left = memoryview(text.encode())
        try:
            while left:
                left = left[self.file.write(left) :]
        except OSError as error:
            raise NotWritten(f"cannot write to {str(self.path)!r}: {error.strerror or error}.") from error

    def cut(self, size: int) -> None:
        """Keep the first `size` bytes."""
        self.file.truncate(size)

    def sync(self) -> int:
        """Wait until the disk holds what was appended; returns the file's size in bytes."""
        os.fsync(self.file.fileno())
        return os.fstat(self.file.fileno()).st_size

    def close(self) -> None:
        self.file.close()
