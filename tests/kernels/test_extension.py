"""The C++ extension: its stub says what it has, and RLHF_FAST_LEVEL ends its list of instruction sets.

pybind11 writes a signature into each docstring, `f(x: int, *, y: float | None) -> None`. It is compared with the stub:
names, arguments, how they are passed, types, results.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rlhf_kernels
from rlhf_kernels.extension import MISSING, native

pytestmark = pytest.mark.skipif(MISSING is not None, reason="the C++ extension is not built: install from source")

STUB = Path(rlhf_kernels.__file__).with_name("_native.pyi")
# pybind11's words, which differ between its versions, for the stub's
TYPES = {
    "SupportsInt | SupportsIndex": "int",
    "SupportsFloat | SupportsIndex": "float",
    "SupportsInt": "int",
    "SupportsFloat": "float",
    "Sequence": "list",
    "tuple[int, int, int]": "Strided",
}


def stubbed(source: str) -> dict[str, str]:
    """Qualified name of each function and method -> its signature in one form."""
    found: dict[str, str] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = signature(node)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{f.name}": signature(f) for f in node.body if isinstance(f, ast.FunctionDef)}
    return found


def bound(module: object) -> dict[str, str]:
    """The same of the extension, from its docstrings."""
    found: dict[str, str] = {}
    for name, value in public(module).items():
        if isinstance(value, type):
            methods = {**public(value), "__init__": value.__init__}
            found |= {f"{name}.{k}": docstring(f) for k, f in methods.items() if callable(f)}
        elif callable(value):
            found[name] = docstring(value)
    return found


def public(thing: object) -> dict[str, object]:
    return {name: value for name, value in vars(thing).items() if not name.startswith("_")}


def docstring(function: object) -> str:
    text = str(function.__doc__).splitlines()[0]
    text = re.sub(r"\b(?:typing|collections\.abc|rlhf_kernels\._native|_native)\.", "", text)
    for theirs, ours in TYPES.items():
        text = text.replace(theirs, ours)
    text = re.sub(r"Optional\[(\w+)\]", r"\1 | None", text)
    definition = ast.parse(f"def {text}: ...").body[0]
    assert isinstance(definition, ast.FunctionDef)
    return signature(definition)


def signature(f: ast.FunctionDef) -> str:
    """Arguments without names in C++ are `arg0`, `arg1` there and positional-only in the stub: names do not count."""
    positional = [*f.args.posonlyargs, *f.args.args]
    unnamed = bool(f.args.posonlyargs) or any(re.fullmatch(r"arg\d+", a.arg) for a in positional)
    words = [
        annotation(a) if unnamed and a.arg != "self" else f"{a.arg}: {annotation(a)}"
        for a in positional
        if a.arg != "self"
    ]
    if f.args.kwonlyargs:
        words += ["*", *(f"{a.arg}: {annotation(a)}" for a in f.args.kwonlyargs)]
    defaults = [ast.unparse(d) for d in (*f.args.defaults, *f.args.kw_defaults) if d is not None]
    return f"({', '.join(words)}) -> {ast.unparse(f.returns) if f.returns else None} {defaults or ''}".strip()


def annotation(argument: ast.arg) -> str:
    return ast.unparse(argument.annotation) if argument.annotation else ""


def test_the_stub_has_every_function_of_the_extension_as_it_is():
    assert stubbed(STUB.read_text(encoding="utf-8")) == bound(native)


def test_the_stub_has_the_classes_and_values_of_the_extension():
    body = ast.parse(STUB.read_text(encoding="utf-8")).body
    classes = {node.name for node in body if isinstance(node, ast.ClassDef)}
    values = {ast.unparse(node.target) for node in body if isinstance(node, ast.AnnAssign)}
    assert classes == {name for name, value in public(native).items() if isinstance(value, type)}
    assert values == {name for name, value in public(native).items() if not callable(value)} == {"openmp"}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("def f(x: int) -> None: ...", "f(y: typing.SupportsInt) -> None"),  # another name
        ("def f(x: int) -> None: ...", "f(x: float) -> None"),  # another type
        ("def f(x: int) -> None: ...", "f(*, x: int) -> None"),  # by name only
        ("def f(x: int) -> None: ...", "f(x: int) -> int"),  # another result
        ("def f(x: int) -> None: ...", "f(x: int, y: int) -> None"),  # one more
        ("def f(x: int) -> None: ...", "f(x: int = 3) -> None"),  # a default
        ("def f(x: int, y: float, /) -> None: ...", "f(arg0: float, arg1: int) -> None"),  # another order
    ],
)
def test_a_signature_that_differs_is_seen(ours, theirs):
    def function(): ...

    function.__doc__ = theirs
    assert stubbed(ours)["f"] != docstring(function)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("def f(x: int, *, y: float | None) -> None: ...", "f(x: typing.SupportsInt, *, y: Optional[float]) -> None"),
        ("def f(x: Strided, /) -> None: ...", "f(arg0: tuple[typing.SupportsInt, int, int]) -> None"),
    ],
)
def test_a_signature_that_is_the_same_in_other_words_is_not(ours, theirs):
    def function(): ...

    function.__doc__ = theirs
    assert stubbed(ours)["f"] == docstring(function)


def chosen(level: str) -> subprocess.CompletedProcess[str]:
    """The levels that the extension lists in a process of its own; the package takes the last."""
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('_native', sys.argv[1])\n"
        "native = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(native)\n"
        "print(*native.levels())"
    )
    command = [sys.executable, "-c", code, native.__file__]
    return subprocess.run(command, env={**os.environ, "RLHF_FAST_LEVEL": level}, capture_output=True, text=True)


@pytest.mark.skipif("RLHF_FAST_LEVEL" in os.environ, reason="RLHF_FAST_LEVEL is set for this run")
def test_a_level_named_in_the_environment_is_the_last_and_so_the_one_that_runs():
    levels = native.levels()
    for i, level in enumerate(levels):
        assert chosen(level).stdout.split() == levels[: i + 1]
    assert chosen("").stdout.split() == levels


@pytest.mark.parametrize("level", ["avx3", "Portable", "portable,avx2"])
def test_a_level_that_the_processor_does_not_run_is_an_error_that_names_those_it_does(level):
    ran = chosen(level)
    assert ran.returncode == 1
    expected = f"RLHF_FAST_LEVEL is '{level}', expected one of the levels that this processor runs: portable"
    assert expected in ran.stderr.splitlines()[-1]
