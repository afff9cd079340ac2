"""A compiler that does not compile the same thing twice: put it, with the real compiler's command, where CXX goes.

    CXX="python csrc/compile_once.py c++" pip install .

An object is kept under the hash of the compiler's version, the flags and the text that the preprocessor makes of the
file, so a change of any header counts. A compilation that hashes the same is a copy. What is not the compilation of one
file, and what does not compile, goes to the compiler as it came. Objects are in $RLHF_FAST_OBJECTS, or in
rlhf_fast/objects of the user's cache folder: those unused for 30 days go, and all may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CACHE = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
KEPT = Path(os.environ.get("RLHF_FAST_OBJECTS") or Path(CACHE, "rlhf_fast", "objects"))
UNUSED = 30 * 24 * 3600  # seconds


def main(command: list[str]) -> int:
    """Run the compiler's command, or copy the object that it made before. The compiler's exit status."""
    sources = [argument for argument in command if argument.endswith((".c", ".cpp", ".cu"))]
    if "-c" not in command or "-o" not in command or len(sources) != 1:
        return subprocess.run(command).returncode
    at = command.index("-o")
    given = [a for i, a in enumerate(command) if a != "-c" and i not in (at, at + 1)]
    # without debug information no line number goes into the object, nor the folder of a header
    text = subprocess.run([*given, "-E", *(["-P"] if "-g0" in given else [])], capture_output=True)
    if text.returncode:
        return subprocess.run(command).returncode
    version = subprocess.run([command[0], "--version"], capture_output=True, check=True).stdout
    flags = [a for a in given if a not in sources and not a.startswith("-I")]
    kept = KEPT / f"{hashlib.sha256(b'|'.join([version, repr(flags).encode(), text.stdout])).hexdigest()}.o"
    out = Path(command[at + 1])
    if kept.is_file():
        shutil.copyfile(kept, out)
        os.utime(kept)
        return 0
    status = subprocess.run(command).returncode
    if status == 0:
        try:
            keep(out, kept)
        except OSError as error:
            print(f"compiled, but not kept for the next time: {error}", file=sys.stderr)
    return status


def keep(made: Path, kept: Path) -> None:
    """Copy an object to its place, whole or not at all, and drop those that nobody has used for long."""
    KEPT.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=KEPT)
    with open(handle, "wb") as file, made.open("rb") as source:
        shutil.copyfileobj(source, file)
    os.replace(partial, kept)
    for old in KEPT.iterdir():
        if time.time() - old.stat().st_mtime > UNUSED:
            old.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
