"""Everything that a GPU can show, in one call of some five minutes.

    python -m benchmarks.gpu --out gpu.json                     # every section
    python -m benchmarks.gpu --sections decode update           # some of them
    python -m benchmarks.gpu --dry                              # at toy size on a CPU: does the script itself work?

Each section runs in a process of its own, which a crash or its deadline ends without touching the others. Its rows are
appended to FILE.jsonl as they come; at the end FILE holds them all, with what they were measured on. The exit status is
1 where a section failed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking for a device must not start CUDA before the forks

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.sections import SECTIONS


def main() -> int:
    given = parse()
    if not given.dry and not torch.cuda.is_available():
        print("No CUDA device: torch.cuda.is_available() is False. Run this where nvidia-smi lists one, or with --dry.")
        return 1
    lines = given.out.with_suffix(".jsonl")
    lines.unlink(missing_ok=True)
    failed = []
    started = time.perf_counter()
    for name in given.sections:
        status, seconds = run(name, lines, given.dry, given.seconds - (time.perf_counter() - started))
        append(lines, {"section": name, "status": status, "seconds": round(seconds, 1)})
        print(f"{name}: {status}, {seconds:.1f} s", flush=True)
        failed += [name] if status != "ok" else []
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    given.out.write_text(json.dumps(rows, indent=1) + "\n")
    lines.unlink()
    show(rows)
    print(f"failed: {', '.join(failed)}" if failed else "every section ran")
    return int(bool(failed))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, help="Which sections, in this order.")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="Where the numbers are written.")
    parser.add_argument("--seconds", type=float, default=300, help="For all sections together.")
    parser.add_argument("--dry", action="store_true", help="Toy sizes on a CPU.")
    given = parser.parse_args()
    given.sections = given.sections or [name for name, section in SECTIONS.items() if section.standard]
    return given


def run(name: str, lines: Path, dry: bool, left: float) -> tuple[str, float]:
    """Run a section in a child; returns how it ended and its seconds."""
    start = time.perf_counter()
    deadline = min(SECTIONS[name].seconds * (2 if dry else 1), left)
    if deadline <= 5:
        return "no time was left", 0.0
    child = multiprocessing.get_context("fork").Process(target=work, args=(name, lines, dry))
    child.start()
    child.join(deadline)
    if child.is_alive():
        child.kill()
        child.join()
        status = f"stopped at its deadline of {deadline:.0f} s"
    else:
        status = "ok" if child.exitcode == 0 else f"failed with status {child.exitcode}"
    return status, time.perf_counter() - start


def work(name: str, lines: Path, dry: bool) -> None:
    """What the child does."""

    def report(row: dict[str, Any]) -> None:
        append(lines, {"section": name} | row)

    try:
        SECTIONS[name].run(Bench(torch.device("cpu" if dry else "cuda"), dry, report))
    except BaseException as error:
        text = traceback.format_exc()
        print(text, file=sys.stderr, flush=True)
        report({"error": f"{type(error).__name__}: {error}"[:500], "trace": text[-1500:]})
        raise SystemExit(1) from error


def append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def show(rows: list[dict[str, Any]]) -> None:
    """A table a section: a line a row, its numbers as name=value."""
    table = Table("section", "what", "numbers", box=None)
    for row in rows:
        what = row.get("what", row.get("status", "error"))
        numbers = [
            f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in row.items()
            if key not in ("section", "what", "status", "trace", "top")
        ]
        table.add_row(row["section"], str(what), "  ".join(numbers))
        for line in row.get("top", []):
            table.add_row("", "", f"  {line}")
    Console(width=180).print(table)


if __name__ == "__main__":
    sys.exit(main())
