"""Imports point down the floors, never up and never sideways; light things stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_fast.cli import VERBS

ROOT = Path(__file__).parents[1]
FLOORS = [
    {"rlhf_fast.__main__"},
    {f"rlhf_fast.{room}" for room in ("cli", "demo", "annotate", "bench", "trainer", "__init__")},
    {f"rlhf_fast.{room}" for room in ("train", "preferences", "evaluate", "generate", "export")},
    {f"rlhf_fast.{room}" for room in ("rollout", "rewards", "data", "profiling")},
    {"rlhf_fast.model", "rlhf_fast.report"},
    {"rlhf_fast.runtime"},
    {"rlhf_kernels"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
PATH = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
FILES = sorted([*ROOT.glob("rlhf_fast/**/*.py"), *ROOT.glob("kernels/**/*.py")])


def room_of(module: str) -> str:
    return "rlhf_kernels" if module.startswith("rlhf_kernels") else ".".join(module.split(".")[:2])


def imported(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
    return {module for module in modules if module.startswith(("rlhf_fast", "rlhf_kernels"))}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    relative = path.relative_to(ROOT / "kernels" if "kernels" in path.relative_to(ROOT).parts[0] else ROOT)
    own = room_of(".".join(relative.with_suffix("").parts))
    for module in imported(path):
        other = room_of(module)
        if other not in (own, "rlhf_fast"):
            assert FLOOR_OF[other] > FLOOR_OF[own], f"{own} imports {module}"


def modules_of(package: str) -> dict[str, Path]:
    root = ROOT / "kernels" if package == "rlhf_kernels" else ROOT
    parts = {path: path.relative_to(root).with_suffix("").parts for path in root.glob(f"{package}/**/*.py")}
    return {".".join(names).removesuffix(".__init__"): path for path, names in parts.items()}


@pytest.mark.parametrize(
    ("package", "file", "its_own"),
    [
        ("rlhf_kernels", "logprobs.native", ["op", "logprobs.reference"]),
        ("rlhf_fast", "train.ppo", ["rollout.engine", "rollout.scoring", "model.batches"]),
    ],
)
def test_files_import_in_no_circle(package, file, its_own):
    """As modules are imported, which leaves aside what a type checker reads; of the kernels also within functions."""
    files, imports = modules_of(package), {}
    for module, path in files.items():
        tree = ast.parse(path.read_text())
        read = ast.walk(tree) if package == "rlhf_kernels" else tree.body
        nodes = [node for node in read if isinstance(node, ast.ImportFrom)]
        named = [(node.module or "", alias.name) for node in nodes for alias in node.names if alias.name != "_native"]
        found = {f"{base}.{name}" if f"{base}.{name}" in files else base for base, name in named}
        imports[module] = found & files.keys() - {module}
    assert {f"{package}.{name}" for name in its_own} <= imports[f"{package}.{file}"]
    while leaves := [module for module, found in imports.items() if not found & imports.keys()]:
        for module in leaves:
            del imports[module]
    assert not imports  # what is left is in a circle, or imports one


@pytest.mark.parametrize("verb", VERBS)
def test_the_config_of_a_verb_is_read_without_transformers(verb):
    """So that its --help is there at once."""
    module = VERBS[verb].config.partition(":")[0]
    code = f"import sys, {module}; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=PATH)


@pytest.mark.parametrize("package", ["rlhf_fast", "rlhf_kernels"])
def test_importing_a_package_does_not_import_transformers(package):
    code = f"import sys, {package}; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=PATH)


def test_importing_the_kernels_takes_under_a_second_beyond_torch():
    code = "import time, torch; t = time.perf_counter(); import rlhf_kernels; print(time.perf_counter() - t)"
    runs = [
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=PATH)
        for _ in "123"
    ]
    assert min(float(run.stdout) for run in runs) < 1
