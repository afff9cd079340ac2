"""Where results go, checked before the work that they would hold is done."""

from __future__ import annotations

import os
from pathlib import Path

from rlhf_fast.runtime.errors import UsageError


def refuse_unwritable(field: str, folder: str | Path) -> None:
    """Raise `UsageError` naming the config's `field` unless `folder` can be written, or made and then written.

    Nothing is created: the answer comes from the nearest folder that is there already.
    """
    path = Path(folder).expanduser().absolute()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not there.is_dir():
        reason = f"{there} is a file"
    elif not os.access(there, os.W_OK | os.X_OK):
        reason = f"{there} may not be written"
    else:
        return
    raise UsageError(f"{field}={str(folder)!r} cannot be written: {reason}. Choose another folder.")
