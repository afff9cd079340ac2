"""Errors a user can meet: what was got, what was expected, what to do."""

from __future__ import annotations


class UsageError(ValueError):
    """Something the user gave cannot be used.

    The message says what was got, what was expected, and what to do. The command line prints it without a traceback.
    """


class StepFailed(UsageError):
    """A step of a run failed before it changed what a checkpoint holds: the run is saved as before it."""


class NotWritten(UsageError):
    """The disk refused a line of a run's records; what a checkpoint holds is older and whole."""
