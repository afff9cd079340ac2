"""Finished stages are kept: a later run with the same settings reuses them, and goes on from the first that differs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from rlhf_fast import __version__
from rlhf_fast.runtime.files import write_text

MARKER = "finished.json"


class Ledger:
    """Which stages are finished. A stage is known by its settings and by those of the stages that it needs."""

    def __init__(self) -> None:
        self.keys: dict[str, str] = {}

    def key(self, name: str, settings: dict[str, Any], needs: tuple[str, ...]) -> str:
        """Record and return the key of stage `name`; the stages in `needs` are recorded before."""
        known = [__version__, settings, [self.keys[need] for need in needs]]
        self.keys[name] = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
        return self.keys[name]


def is_finished(folder: Path, key: str) -> bool:
    try:
        return json.loads((folder / MARKER).read_text())["key"] == key
    except (OSError, ValueError, KeyError):
        return False


def mark_finished(folder: Path, key: str) -> None:
    write_text(folder / MARKER, json.dumps({"key": key}) + "\n")


def mark_unfinished(folder: Path) -> None:
    (folder / MARKER).unlink(missing_ok=True)
