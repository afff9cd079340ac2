"""What is shown to a user: the logger of notices and how it becomes visible, and what may be shown of texts from
elsewhere, on a terminal, in a log or in a file: no secrets of an address, and no characters that command a terminal."""

from __future__ import annotations

import hashlib
import logging
import re
import sys
import unicodedata
from typing import Any

from rlhf_fast.runtime.distributed import is_main

notices = logging.getLogger("rlhf_fast.notices")
"""What a user should know of a run, once each and before its first step wherever that can be; at INFO or WARNING."""
notices.addFilter(lambda _: is_main())  # of several processes, process 0 says them, also before these are connected
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://[^\s'\"<>]+")
HIDDEN = "***"


def printable(text: str, *, keep: str = "\n\t") -> str:
    """`text` with its control and format characters (escape sequences, carriage returns, changes of direction) written
    as escapes, as in \\x1b, but for those in `keep`."""
    return "".join(
        c if c in keep or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else _escape(c) for c in text
    )


class PrintableFormatter(logging.Formatter):
    """For the log on a terminal: what `printable` makes of each record."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def hide_secrets(address: str, *, digest: bool = False) -> str:
    """An address without what stands before its @, and without the values of its query and its fragment.

    digest: a few digits of each value's SHA-256 take its place, by which another value is told.
    """
    scheme, mark, rest = address.partition("://") if "://" in address else ("", "", address)
    user, at, rest = rest.rpartition("@")
    place, query_mark, query = rest.replace("#", "?", 1).partition("?")
    shown = [_hide_value(part, digest) for part in query.split("&")] if query else []
    secret = HIDDEN + (f" {_digest(user)}" if digest else "") + at if at else ""
    return f"{scheme}{mark}{secret}{place}{query_mark}{'&'.join(shown)}"


def without_secrets(value: Any, *, digest: bool = False) -> Any:
    """`value`, of JSON's kinds, with `hide_secrets` for every address in its texts."""
    if isinstance(value, str):
        return _ADDRESS.sub(lambda match: hide_secrets(match[0], digest=digest), value)
    if isinstance(value, list):
        return [without_secrets(one, digest=digest) for one in value]
    if isinstance(value, dict):
        return {key: without_secrets(one, digest=digest) for key, one in value.items()}
    return value


def _hide_value(part: str, digest: bool) -> str:
    name, mark, value = part.partition("=")
    if not mark:
        name, value = "", name
    return f"{name}{mark}{HIDDEN}" + (f" {_digest(value)}" if digest else "")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"


def show_notices() -> None:
    """Show `notices` in process 0 of a program that has not set up logging: the messages alone, on stderr."""
    if is_main() and notices.level == logging.NOTSET and not notices.hasHandlers():
        notices.setLevel(logging.INFO)
        notices.addHandler(PlainHandler())


class PlainHandler(logging.StreamHandler):
    """Messages on what `sys.stderr` is when they come (a progress bar puts itself there): alone up to INFO, after the
    name of their level from WARNING on. As the handler of `notices` it gives way to a program's own set-up."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(PrintableFormatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        root = logging.getLogger()
        if self in root.handlers or not root.handlers:
            self.stream = sys.stderr
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname}: " if record.levelno >= logging.WARNING else ""
        return level + super().format(record)
