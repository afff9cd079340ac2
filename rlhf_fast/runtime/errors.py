"""Errors a user can meet: what was got, what was expected, what to do."""

from __future__ import annotations

import errno


class UsageError(ValueError):
    """Something the user gave cannot be used.

    The message says what was got, what was expected, and what to do. The command line prints it without a traceback.
    """


class StepFailed(UsageError):
    """A step of a run failed before it changed what a checkpoint holds: the run is saved as before it."""


class NotWritten(UsageError):
    """The disk refused a line of a run's records; what a checkpoint holds is older and whole."""


def disk_remedy(error: Exception) -> str:
    """What to do about a disk that refused: a sentence. Libraries' own errors are told by their text."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left" in str(error) or "quota exceeded" in str(error):
        return "Make room."
    return "Check the disk and the rights to the folder."
