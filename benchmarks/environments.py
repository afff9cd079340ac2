"""Virtual environments for packages that a benchmark compares with, and that must not change the one it runs in."""

from __future__ import annotations

import os
import subprocess
import venv
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATH = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
"""PYTHONPATH of a process that imports the benchmarks and the kernels from this checkout."""


def python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def is_made(folder: Path) -> bool:
    """Whether `make` has finished there."""
    return _mark(folder).exists()


def make(folder: Path, packages: Sequence[str]) -> Path:
    """The interpreter of the virtual environment `folder`, which is made with `packages` where it is missing."""
    if not is_made(folder):
        venv.create(folder, with_pip=True, clear=True)  # an environment whose installation failed starts anew
        for wanted in ((same("torch"),), packages):  # torch first, by exact version: the others would bring another
            subprocess.run([str(python_of(folder)), "-m", "pip", "install", "--quiet", *wanted], check=True)
        _mark(folder).touch()
    return python_of(folder)


def same(package: str) -> str:
    """A requirement of the version that runs here."""
    return f"{package}=={version(package).partition('+')[0]}"


def _mark(folder: Path) -> Path:
    return folder / "installed"
