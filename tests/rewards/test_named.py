"""Reward functions that a config names: modules and files are imported, and what cannot be is said with the remedy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlhf_fast import EvaluateConfig, PPORunConfig, UsageError
from rlhf_fast.cli import main
from rlhf_fast.rewards.chosen import choose_rewards
from rlhf_fast.rewards.source import RewardBatch
from rlhf_fast.runtime.parse import parse_config
from rlhf_fast.runtime.tracking import read_metrics
from tests.resume.cases import prepare

ROOT = Path(__file__).parents[2]
CODE = """
import functools
from rlhf_fast import ForbiddenPhrases
from helper_of_{name} import COUNT

def words(prompts, responses, **columns):
    return [COUNT * len(text.split()) for text in responses]

class Holder:
    def method(self, prompts, responses, **columns):
        return [7.0] * len(responses)

holder = Holder()
rule = ForbiddenPhrases(["no"])
number = 3
"""
BATCH = RewardBatch(["p", "q"], ["a b", "no"], [[1], [2]])


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current one, with the modules `judge_NAME` and, in a folder below, a file of the same kind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, place in (("here", tmp_path), ("below", tmp_path / "rules")):
        place.mkdir(exist_ok=True)
        (place / f"judge_{name}.py").write_text(CODE.format(name=name))
        (place / f"helper_of_{name}.py").write_text(f"COUNT = {2 if name == 'here' else 3}.0")
    yield tmp_path
    for module in [m for m in sys.modules if m.startswith(("judge_", "helper_of_", "reward file", "broken"))]:
        del sys.modules[module]


def scores(*names: str) -> dict[str, list[float]]:
    return {source.name: source.score(BATCH).tolist() for source, _ in choose_rewards(names, None, timeout=None)}


def test_modules_of_the_current_folder_and_files_elsewhere_are_imported_with_what_they_import(folder):
    found = scores("judge_here:words", "rules/judge_below.py:words", f"{folder}/rules/judge_below.py:holder.method")
    assert found == {"words": [4.0, 2.0], "words_2": [6.0, 3.0], "method": [7.0, 7.0]}
    assert scores("./judge_here.py:rule") == {"forbidden_phrases": [0.0, -1.0]}


def test_a_file_is_imported_once_for_all_of_its_functions(folder):
    (folder / "judge_count.py").write_text("made = []\ndef words(prompts, responses): return made.append(1) or made\n")
    first, second = choose_rewards(["judge_count.py:words", "judge_count.py:words"], None, timeout=None)
    assert first[0].function.__globals__ is second[0].function.__globals__


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("words", "expected endpoint:ADDRESS .*module:function or path/to/file.py:function"),
        ("http://127.0.0.1:8000/score", "expected endpoint:ADDRESS"),
        ("judge_here:", "expected endpoint:ADDRESS"),
        ("judge_away:words", "ModuleNotFoundError: No module named 'judge_away'. Run from the folder that holds"),
        ("rules/away.py:words", r"there is no file 'rules/away\.py' \(from .*\)\. Correct the path"),
        ("judge_here:word", "judge_here has no 'word'. Did you mean words"),
        ("judge_here:Holder", "'judge_here:Holder' of reward_funcs is a class; expected a function.*an instance"),
        ("judge_here:holder", "is a Holder; expected a function"),
        ("judge_here:number", "is a int; expected a function"),
        ("broken.py:words", "cannot be imported: IndentationError: .*broken.py, line 2.* Mend the file"),
        (
            "broken_import.py:words",
            r"No module named 'nowhere_at_all'\. Raised in broken_import\.py, line 1\. Mend the file",
        ),
        (
            "broken_name.py:words",
            r"NameError: .*'absent' is not defined\. Raised in broken_name\.py, line 3\. Mend the file",
        ),
        ("broken_script:words", "cannot be imported: SystemExit: 3"),
    ],
)
def test_what_cannot_be_imported_or_called_is_named_with_the_remedy(folder, name, message):
    (folder / "broken.py").write_text("def words(prompts, responses):\nreturn 3\n")
    (folder / "broken_import.py").write_text("import nowhere_at_all\n")
    (folder / "broken_name.py").write_text("import json\n\nabsent + 1\n")
    (folder / "broken_script.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(UsageError, match=message) as error:
        scores(name)
    assert f"{name!r}" in str(error.value)


@pytest.mark.parametrize("config", [PPORunConfig, EvaluateConfig])
def test_the_command_line_and_yaml_take_functions_beside_endpoints(folder, config):
    named = ["judge_here:words", "rules/judge_below.py:words", "endpoint:http://127.0.0.1:1/"]
    assert parse_config(config, ["--reward_funcs", *named], prog="x").reward_funcs == named
    (folder / "own.yaml").write_text(yaml.safe_dump({"reward_funcs": named}))
    assert parse_config(config, ["--config", "own.yaml"], prog="x").reward_funcs == named


def test_a_run_of_the_command_line_finds_a_module_of_its_folder_and_weighs_it(folder, capsys):
    """The current folder is not on Python's path of an installed script: neither is it here (-I)."""
    prepare(folder)
    (folder / "own.yaml").write_text(yaml.safe_dump({
        "sft_model_path": "sft_adapter", "dataset_name": "demonstrations.jsonl", "use_cpu": True, "dtype": "float32",
        "lora_r": 4, "lora_alpha": 8, "response_length": 5, "per_device_train_batch_size": 6, "total_episodes": 6,
        "reward_funcs": ["judge_here:words", "rules/judge_below.py:holder.method"], "reward_weights": [0.5, 2.0],
    }))  # fmt: skip
    start = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'kernels')!r}]; from rlhf_fast.cli import main; "
    code = f"{start}sys.exit(main(['ppo', '--config', 'own.yaml', '--output_dir', 'out']))"
    subprocess.run([sys.executable, "-I", "-c", code], cwd=folder, check=True, capture_output=True)
    (metrics,) = read_metrics(folder / "out")
    rows = [json.loads(line) for line in (folder / "out" / "rollouts.jsonl").open()]
    assert all(row["scores"] == {"words": 2.0 * len(row["response"].split()), "method": 7.0} for row in rows)
    assert metrics["objective/scores"] == pytest.approx(0.5 * metrics["reward/words"] + 2 * 7.0)
    wrong = ["--output_dir", "wrong", "--reward_funcs", "judge_away:words", "--reward_weights", "1"]
    assert main(["ppo", "--config", "own.yaml", *wrong]) == 2
    said = capsys.readouterr().err
    assert "judge_away" in said and "Traceback" not in said
    assert not (folder / "wrong").exists()
