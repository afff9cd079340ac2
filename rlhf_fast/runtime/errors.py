"""Errors a user can meet: what was got, what was expected, what to do."""

from __future__ import annotations


class UsageError(ValueError):
    """Something the user gave cannot be used.

    The message says what was got, what was expected, and what to do. The command line prints it without a traceback.
    """
