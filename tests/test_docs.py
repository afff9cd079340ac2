"""Docs and code agree: Python compiles, names and tests exist; commands parse; every field has a help text."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

import rlhf_fast
from rlhf_fast.cli import VERBS, load, main
from rlhf_fast.runtime.config import field_names
from rlhf_fast.runtime.parse import config_parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*.md"))]
BLOCKS = [
    (page.name, language, text)
    for page in PAGES
    for language, text in re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.DOTALL)
]


NODES = sorted({node for page in PAGES for node in re.findall(r"`(tests/[^`*]+)`", page.read_text())})


@pytest.mark.parametrize("node", NODES)
def test_a_test_that_the_docs_name_exists(node):
    path, _, name = node.partition("::")
    assert (ROOT / path).exists()
    if name:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {item.name for item in tree.body if isinstance(item, ast.FunctionDef)}


@pytest.mark.parametrize("text", [text for _, language, text in BLOCKS if language == "python"])
def test_python_in_the_docs_compiles_and_imports_what_exists(text):
    nodes = list(ast.walk(ast.parse(text)))
    imported = {
        alias.name: getattr(importlib.import_module(node.module), alias.name)
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0
        for alias in node.names
    }
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Config"):
            known = {f.name for f in fields(imported.get(node.func.id) or getattr(rlhf_fast, node.func.id))}
            assert {keyword.arg for keyword in node.keywords} <= known


def commands() -> list[str]:
    shell = "\n".join(text for _, language, text in BLOCKS if language == "bash").replace("\\\n", " ")
    return [line.split("#")[0].strip() for line in shell.splitlines() if line.startswith("rlhf-fast ")]


@pytest.mark.parametrize("command", commands())
def test_commands_in_the_docs_name_verbs_and_fields_that_exist(command):
    _, verb, *rest = shlex.split(command)
    known = {*field_names(load(VERBS[verb].config)), "config", "help"}
    assert {word.removeprefix("--") for word in rest if word.startswith("--")} <= known


@pytest.mark.parametrize("verb", VERBS)
def test_every_field_of_a_verb_is_explained(verb, capsys):
    config = load(VERBS[verb].config)
    shown = {action.dest: action.help for action in config_parser(config, verb)._actions}
    assert all(shown[name] for name in field_names(config))
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert all(f"--{name}" in printed for name in field_names(config))
    assert load(VERBS[verb].run)
