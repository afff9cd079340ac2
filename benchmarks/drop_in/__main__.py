"""Scripts written for TRL's PPO, run as they are in TRL 1.12, and here with one import changed.

    python -m benchmarks.drop_in                               # makes .venv-trl the first time; prints the table
    python -m benchmarks.drop_in --trl FOLDER                  # also the examples and trainer tests of a copy of TRL
    python -m benchmarks.drop_in --fields                      # only each field of TRL's PPOConfig with other values
    python -m benchmarks.drop_in --only resumed use_peft       # rows whose title has one of these in it

A row passes where the script ends and its own assertions hold: something was trained, the files that it saves open,
text is generated. Models are tiny and random, made on the spot, and nothing is downloaded beside TRL itself.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import shorten

from rich.console import Console
from rich.table import Table

from benchmarks import environments
from benchmarks.drop_in import inputs
from benchmarks.drop_in.fields import field_rows
from benchmarks.drop_in.option_sets import OptionSet, change_imports, own_rows, trl_rows
from benchmarks.vs_trl.sides import PACKAGES, TRL

SIDES = ("here", "TRL 1.12")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", type=Path, help="A copy of TRL's repository: its examples and tests are rows too.")
    parser.add_argument("--fields", action="store_true", help="Count accepted settings of the config instead.")
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="Rows with one of these in the title.")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/drop_in"), help="Inputs, logs and results.")
    given = parser.parse_args()
    python = environments.make(TRL, PACKAGES)
    output = given.output_dir.resolve()
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    rows = field_rows() if given.fields else own_rows() + (trl_rows(given.trl.resolve()) if given.trl else [])
    rows = [row for row in rows if any(text in row.title for text in given.only)]
    results = {side: run(side, rows, output, python, given.trl) for side in SIDES}
    write(output, *table(rows, results, all_rows=not given.fields))


def run(side: str, rows: list[OptionSet], output: Path, python: Path, trl: Path | None) -> list[dict[str, object]]:
    """The results of all rows on one side, in a folder with inputs of its own."""
    folder = output / side.replace(" ", "-")
    inputs.make(folder)
    if trl is not None:
        _copy_tests(trl, folder, here=side == "here")
    asked = [_asked(number, row, folder, here=side == "here") for number, row in enumerate(rows, 1)]
    (folder / "asked.json").write_text(json.dumps(asked, indent=1))
    own = sys.executable if side == "here" else str(python)
    last = [str(path) for path in python.parents[1].glob("lib/python*/site-packages")] if side == "here" else []
    command = [own, "-m", "benchmarks.drop_in.side", "asked.json", "results.json", *last]
    subprocess.run(command, cwd=folder, env=environment(folder), check=True)
    return json.loads((folder / "results.json").read_text())


def environment(folder: Path) -> dict[str, str]:
    """Of a side: no network, caches of its own, and one thread where nothing else is asked for."""
    return os.environ | {
        "PYTHONPATH": environments.PATH, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "TRL_EXPERIMENTAL_SILENCE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip


def _asked(number: int, row: OptionSet, folder: Path, *, here: bool) -> dict[str, object]:
    """The row as `side` takes it, its script written into `folder`, where it runs."""
    script = None
    if row.script is not None:
        text = row.script.read_text(encoding="utf-8")
        copy = folder / "scripts" / f"{number}-{row.script.name}"
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(change_imports(text) if here else text, encoding="utf-8")
        script = str(copy)
    (folder / "logs").mkdir(exist_ok=True)
    return {
        "script": script, "arguments": [w.replace("OUTPUT", f"out/{number}") for w in row.arguments],
        "folder": str(folder), "log": str(folder / "logs" / f"{number}.log"),
    }  # fmt: skip


def _copy_tests(trl: Path, folder: Path, *, here: bool) -> None:
    """The tests of TRL's PPO trainer and what they import."""
    for name in ("__init__.py", "conftest.py", "testing_utils.py", "experimental/__init__.py"):
        target = folder / "tests" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(trl / "tests" / name, target)
    test = Path("tests/experimental/test_ppo_trainer.py")
    text = (trl / test).read_text(encoding="utf-8")
    (folder / test).write_text(change_imports(text) if here else text, encoding="utf-8")


def table(
    rows: list[OptionSet], results: dict[str, list[dict[str, object]]], *, all_rows: bool
) -> tuple[str, list[list[str]]]:
    """A line that counts, and the table: row, each side, and the reasons of those that do not pass.

    Without `all_rows`, of those alone that do not pass on both sides.
    """
    lines = [["row", *SIDES, "reason"]]
    for number, row in enumerate(rows):
        sides = [results[side][number] for side in SIDES]
        reasons = [
            f"{side}: {shorten(one['reason'], 220)}"
            for side, one in zip(SIDES, sides, strict=True)
            if not one["passed"]
        ]
        if all_rows or reasons:
            lines.append([row.title, *("passes" if one["passed"] else "no" for one in sides), "; ".join(reasons)])
    counts = [f"{side} {sum(bool(one['passed']) for one in results[side])}" for side in SIDES]
    both = sum(all(results[side][number]["passed"] for side in SIDES) for number in range(len(rows)))
    inert = sum(bool(one["passed"] and one["inert"]) for one in results["here"])
    said = f"Of {len(rows)} rows pass: {', '.join(counts)}, on both sides {both}."
    return said + (f" Of those here, a line says of {inert} that they have no effect." if inert else ""), lines


def write(output: Path, said: str, lines: list[list[str]]) -> None:
    """Print the table; `table.md` in `output` has it as Markdown."""
    shown = Table(*lines[0], show_lines=False)
    for line in lines[1:]:
        shown.add_row(*(cell.replace("[", r"\[") for cell in line))
    Console(width=160).print(shown)
    print(said)
    cells = [["`" + line[0] + "`", *line[1:]] for line in lines[1:]]
    marked = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in [lines[0], *cells]]
    marked.insert(1, "|" + " --- |" * len(lines[0]))
    (output / "table.md").write_text(said + "\n\n" + "\n".join(marked) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
