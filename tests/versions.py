"""The oldest, a middle and the newest version of the libraries that are allowed, each by a run of every stage.

    python -m tests.versions                 # all that take a minute
    python -m tests.versions oldest triton   # some
    python -m tests.versions spills          # minutes: Triton's kernels compiled ahead of time by its oldest version

Each gets a virtual environment in .venv-versions that holds the other versions and takes everything else from the one
that runs this. Needs the package index. Ends with status 1 where one fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
SMOKE = ["tests.smoke", "--cpu"]
INTERPRETER = ["pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/triton"]
TRITON = ["triton==3.6.0", "numpy==2.3.5"]  # 3.6's interpreter needs numpy < 2.4
AHEAD_OF_TIME = ["pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/test_aot.py"]
VERSIONS: dict[str, tuple[list[str], list[str], dict[str, str]]] = {
    "triton": (TRITON, INTERPRETER, {"TRITON_INTERPRET": "1"}),
    "oldest": (["transformers==5.0.0", "peft==0.18.0"], SMOKE, {}),
    "middle": (["transformers==5.17.0"], SMOKE, {}),
    "newest": (["--upgrade", "transformers<6"], SMOKE, {}),
    "spills": (TRITON, AHEAD_OF_TIME, {}),
}
"""What is installed, the module that is run with its arguments, and its environment; the longest usual one first."""


def main() -> int:
    names = sys.argv[1:] or [name for name in VERSIONS if name != "spills"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each is a process of one thread
        failed = [name for name, works in zip(names, pool.map(works_with, names), strict=True) if not works]
    print(f"{len(failed)} failed: {', '.join(failed)}" if failed else "all versions work")
    return int(bool(failed))


def works_with(name: str) -> bool:
    """Whether its run ends well; the line that says so is printed, with the end of the output where it does not."""
    packages, command, environment = VERSIONS[name]
    start = time.perf_counter()
    python = make(ROOT / ".venv-versions" / name, packages)
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    variables = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run([str(python), "-m", *command], cwd=ROOT, env=variables, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    output = f"\n{done.stdout[-4000:]} {done.stderr[-4000:]}" if done.returncode else ""
    print(f"{name} ({' '.join(packages)}): status {done.returncode}, {seconds:.0f} s{output}", flush=True)
    return done.returncode == 0


def make(folder: Path, packages: list[str]) -> Path:
    """The interpreter of a virtual environment with `packages`, over the packages of the one that runs this."""
    python, outer = folder / "bin" / "python", sysconfig.get_path("purelib")
    done = folder / "installed"
    if not done.exists() or done.read_text() != repr(packages):
        venv.create(folder, clear=True)  # pip is that of the outer one
        site = next((folder / "lib").iterdir()) / "site-packages"
        (site / "outer.pth").write_text(f"import site; site.addsitedir({outer!r})\n")
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        done.write_text(repr(packages))
    return python


if __name__ == "__main__":
    sys.exit(main())
