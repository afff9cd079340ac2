"""Processes of their own that start in a moment: each is forked from one that has imported torch and rlhf_fast.

A new interpreter takes a core some five seconds to import them. It is for tests of the start itself: of launchers, of
Python's path, of what the command line prints on a terminal.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rlhf_fast import run_ppo, run_reward, run_sft  # noqa: F401  # what children would import
from rlhf_fast.trainer import PPOTrainer  # noqa: F401

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


def run(work: Callable[..., Any], *args: Any, environment: dict[str, str] | None = None, folder: Path | None = None,
        seconds: float = 300) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """`sys.exit(work(*args))` in a process, in `folder` with `environment` added: its exit status and what it printed.

    After `seconds` it is killed, with subprocess.TimeoutExpired.
    """
    with tempfile.TemporaryDirectory() as kept:
        out, err = Path(kept, "out"), Path(kept, "err")
        process = CONTEXT.Process(target=_child, args=(out, err, environment or {}, folder, work, args))
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(work.__name__, seconds, out.read_text(), err.read_text())
        return subprocess.CompletedProcess(work.__name__, process.exitcode, out.read_text(), err.read_text())


def python(what: str, *arguments: object, **how: Any) -> subprocess.CompletedProcess[str]:
    """`python -m what arguments` by `run`, or `python what arguments` where it is a file."""
    return run(_main, what, *map(str, arguments), **how)


def _main(what: str, *arguments: str) -> None:
    sys.argv[1:] = arguments
    if what.endswith(".py"):
        runpy.run_path(what, run_name="__main__")
    else:
        runpy.run_module(what, run_name="__main__", alter_sys=True)


def _child(
    out: Path, err: Path, environment: dict[str, str], folder: Path | None, work: Callable[..., Any], args: Any
) -> None:
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        own = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(own, stream.fileno())
    os.environ |= environment
    if folder is not None:
        os.chdir(folder)
    torch.set_num_threads(1)
    sys.exit(work(*args))
