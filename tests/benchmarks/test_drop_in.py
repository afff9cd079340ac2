"""The table of what TRL's scripts do here: which import changes, what a row runs, and when it passes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from benchmarks import environments
from benchmarks.drop_in import __main__ as drop_in
from benchmarks.drop_in.fields import BESIDE, SETTINGS
from benchmarks.drop_in.option_sets import (
    ADAPTER_FORMS,
    SCRIPTS,
    OptionSet,
    change_imports,
    forms_of,
    own_rows,
    trl_rows,
)
from benchmarks.drop_in.side import reason_in
from rlhf_fast import PPOConfig
from tests.trainer.trl_fields import OWN_FIELDS


def test_an_import_of_trls_trainer_changes_and_nothing_else_does():
    text = (
        "import torch\n"
        "from trl import ModelConfig, ScriptArguments, SFTConfig\n"
        "from trl.experimental.ppo import (\n    AutoModelForCausalLMWithValueHead,\n    PPOConfig,\n"
        "    PPOTrainer as T,\n)\n"
        "from trl.experimental.ppo.ppo_trainer import masked_mean\n"
        'print("from trl import PPOConfig")\n'
    )
    assert change_imports(text) == (
        "import torch\n"
        "from rlhf_fast.trainer import ModelConfig, ScriptArguments\n"
        "from trl import SFTConfig\n"
        "from trl.experimental.ppo import AutoModelForCausalLMWithValueHead\n"
        "from rlhf_fast import PPOConfig, PPOTrainer as T\n"
        "from trl.experimental.ppo.ppo_trainer import masked_mean\n"
        'print("from trl import PPOConfig")\n'
    )


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.name)
def test_a_script_of_ours_is_one_of_trls_until_its_import_changes(script):
    text = script.read_text()
    assert "from trl.experimental.ppo import PPOConfig" in text and "rlhf_fast" not in text
    assert "from rlhf_fast import PPOConfig" in change_imports(text)
    assert "import" not in "".join(line for line in change_imports(text).splitlines() if "trl." in line)


def test_there_are_29_option_sets_and_every_form_has_one():
    rows = own_rows()
    assert len(rows) >= 29 and len({row.title for row in rows}) == len(rows)
    assert {form for form, _ in ADAPTER_FORMS} == set(forms_of(SCRIPTS / "adapters.py"))
    asked = {row.arguments[0] for row in rows if row.title.startswith("user: ")}
    assert asked == set(forms_of(SCRIPTS / "users.py")) >= {"callbacks", "resumed"}


def test_an_option_of_a_row_takes_the_place_of_the_usual_one():
    rows = {row.title: row.arguments for row in own_rows()}
    given = rows["example --num_train_epochs 1"]
    assert "--total_episodes" not in given and given[-2:] == ("--num_train_epochs", "1")
    given = rows["example --optim adafactor"]
    assert given[given.index("--total_episodes") + 1] == "8" and given.count("--learning_rate") == 1


def test_trls_own_examples_and_trainer_tests_are_rows(tmp_path):
    for name in ("ppo", "ppo_tldr"):
        (tmp_path / "examples" / "scripts" / "ppo").mkdir(parents=True, exist_ok=True)
        (tmp_path / "examples" / "scripts" / "ppo" / f"{name}.py").touch()
    rows = trl_rows(tmp_path)
    names = [row.script and row.script.name for row in rows]
    assert names == ["ppo.py", "ppo.py", "ppo_tldr.py", "ppo_tldr.py", None, None]
    assert "--use_peft" in rows[1].arguments and rows[4].arguments[-1].endswith("::TestPPOTrainer::test_basic_training")


def test_every_field_of_trls_has_a_value_that_is_not_its_default():
    assert set(OWN_FIELDS) <= set(SETTINGS) and len(SETTINGS) == 145 and set(BESIDE) <= set(SETTINGS)
    assert sum(map(len, SETTINGS.values())) >= 161
    others = {"logging_steps": 10, "gradient_checkpointing": True}  # TRL's defaults that are not ours
    for name, values in SETTINGS.items():
        field = PPOConfig.__dataclass_fields__.get(name)  # not every version of transformers has each
        default = others.get(name, field and field.default)
        assert all(type(value) is not type(default) or value != default for value in values), name


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("ok\nTraceback (most recent call last):\n  x\nKeyError: 'a'\n", "KeyError: 'a'"),
        ("Traceback (...):\n  x\nrlhf_fast.runtime.errors.UsageError: no\nsuch file\n", "UsageError: no such file"),
        ("E       AssertionError: not updated\nE       assert False\nFAILED x - AssertionError: z\n",
         "AssertionError: not updated"),
        ("all is well\n", ""),
    ],
)  # fmt: skip
def test_the_reason_is_the_error_that_ended_the_script(log, reason):
    assert reason_in(log) == reason


@pytest.mark.slow
def test_a_row_passes_where_its_script_ends_and_its_assertions_hold(tmp_path):
    bodies = {"passes": "open('made', 'w')", "asserts": "assert [] == [1], 'nothing'", "exits": "raise SystemExit(3)",
              "says": "print('x has no effect'); import other"}  # fmt: skip
    asked = []
    (tmp_path / "other.py").touch()
    for name, body in bodies.items():
        (tmp_path / f"{name}.py").write_text(f"import sys\nassert sys.argv[1:] == ['given']\n{body}\n")
        script, log = str(tmp_path / f"{name}.py"), str(tmp_path / f"{name}.log")
        asked.append({"script": script, "arguments": ["given"], "folder": str(tmp_path), "log": log})
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    command = [sys.executable, "-m", "benchmarks.drop_in.side", "asked.json", "results.json"]
    environment = os.environ | {"PYTHONPATH": environments.PATH}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(row["passed"], row["reason"], row["inert"]) for row in results] == [
        (True, "", False), (False, "AssertionError: nothing", False), (False, "exit 3", False), (True, "", True)
    ]  # fmt: skip
    assert (tmp_path / "made").exists()


def test_the_table_counts_each_side_and_gives_the_reasons(tmp_path, capsys):
    rows = [OptionSet(title, None, ()) for title in ("a", "b|c", "d")]
    good, inert = ({"passed": True, "reason": "", "inert": said} for said in (False, True))
    bad = {"passed": False, "reason": "E: why", "inert": True}
    results = {"here": [good, inert, bad], "TRL 1.12": [good, bad, bad]}
    said, lines = drop_in.table(rows, results, all_rows=True)
    assert said == (
        "Of 3 rows pass: here 2, TRL 1.12 1, on both sides 1. Of those here, a line says of 1 that they have no effect."
    )
    assert lines[1:] == [
        ["a", "passes", "passes", ""], ["b|c", "passes", "no", "TRL 1.12: E: why"],
        ["d", "no", "no", "here: E: why; TRL 1.12: E: why"],
    ]  # fmt: skip
    assert [line[0] for line in drop_in.table(rows, results, all_rows=False)[1]] == ["row", "b|c", "d"]
    drop_in.write(tmp_path, said, lines)
    written = (tmp_path / "table.md").read_text()
    assert "| `b\\|c` | passes | no | TRL 1.12: E: why |" in written and "d" in capsys.readouterr().out
