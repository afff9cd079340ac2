"""One side of the table: runs rows, each in a process forked from one that has imported what all of them import.

    python -m benchmarks.drop_in.side rows.json results.json [FOLDER ...]

A row is {"script": path or null for pytest, "arguments": [...], "folder": where it runs, "log": path}. It passes where
it ends without an error, its own assertions included. FOLDERs are added at the end of the path: what this environment
lacks.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import re
import runpy
import sys
import time
import traceback
from pathlib import Path
from typing import Any

SHARED = (
    "torch", "peft", "datasets", "accelerate", "transformers.models.qwen2.modeling_qwen2",
    "trl.experimental.ppo.ppo_trainer", "rlhf_fast.trainer.ppo_trainer",
)  # fmt: skip
"""What the process imports that the rows are forked from."""
SECONDS = 240
"""A row that takes longer has failed."""


def main() -> None:
    rows, results, *last = sys.argv[1:]
    sys.path += last
    for name in SHARED:
        try:
            importlib.import_module(name)
        except ImportError:
            continue  # of the other side
    gc.freeze()  # its pages stay shared
    found = [run(row) for row in json.loads(Path(rows).read_text())]
    Path(results).write_text(json.dumps(found, indent=1))


def run(row: dict[str, Any]) -> dict[str, Any]:
    """`passed`, `reason` (empty where it passed), `seconds`, and whether a line said of an option that it has no effect
    (`inert`)."""
    began = time.monotonic()
    child = os.fork()
    if not child:
        _be(row)
    ended, status = 0, None
    while not ended and time.monotonic() - began < SECONDS:
        time.sleep(0.05)
        ended, code = os.waitpid(child, os.WNOHANG)
        status = os.waitstatus_to_exitcode(code) if ended else None
    log = Path(row["log"]).read_text(errors="replace")
    if status is None:
        os.kill(child, 9)
        os.waitpid(child, 0)
        reason = f"did not end in {SECONDS} s"
    else:
        reason = "" if status == 0 else reason_in(log) or f"exit {status}"
    seconds = round(time.monotonic() - began, 1)
    return {"passed": status == 0, "reason": reason, "seconds": seconds, "inert": "has no effect" in log}


def reason_in(log: str) -> str:
    """The error that ended a script, or the first that pytest shows; one line."""
    of_pytest = re.search(r"^E   +(.+)$", log, re.MULTILINE)
    errors = re.findall(r"^(?!  )([\w.]*(?:Error|Interrupted|Exception)\b.*(?:\n(?!Traceback).+)*)", log, re.MULTILINE)
    found = of_pytest[1] if of_pytest else errors[-1] if errors else ""
    return " ".join(str(found).split()).removeprefix("rlhf_fast.runtime.errors.")


def _be(row: dict[str, Any]) -> None:
    """The child: everything it prints goes to the log; it ends as a script ends."""
    log = os.open(row["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(row["folder"])
    sys.path.insert(0, row["folder"])
    sys.argv = [row["script"] or "pytest", *row["arguments"]]
    code = 1
    try:
        if row["script"]:
            runpy.run_path(row["script"], run_name="__main__")
        else:
            runpy.run_module("pytest", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
