"""Where results go, checked before the work that they would hold is done."""

from __future__ import annotations

import os
from pathlib import Path

from rlhf_fast.runtime.distributed import from_main
from rlhf_fast.runtime.errors import UsageError


def refuse_unwritable(field: str, folder: str | Path) -> None:
    """Raise `UsageError` naming the config's `field` unless `folder` can be written, or made and then written.

    Nothing is created: the answer comes from the nearest folder that is there already. Of several processes only
    process 0 writes, and looks.
    """
    reason = from_main(lambda: _unwritable(folder))
    if reason is not None:
        raise UsageError(f"{field}={str(folder)!r} cannot be written: {reason}. Choose another folder.")


def _unwritable(folder: str | Path) -> str | None:
    path = Path(folder).expanduser().absolute()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not there.is_dir():
        return f"{there} is a file"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} may not be written"
    return None
