"""Models, adapters and rewards that are broken, missing or do not fit: named with the remedy, before any step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rlhf_fast import FunctionReward, UsageError
from rlhf_fast.runtime.optimiser import Optimiser
from tests.bad_input_cases import MODEL, STAGES, run, write_good


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return write_good(tmp_path_factory.mktemp("good"))


@pytest.fixture(autouse=True)
def no_work(monkeypatch):
    """Fails where an optimiser steps: the error has to come before."""
    monkeypatch.setattr(Optimiser, "step", lambda self, loss: pytest.fail("a step was taken"))


def damage(folder: Path, name: str) -> None:
    """Cut the file to a third, as a broken copy does."""
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 3])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "cannot open the model .*base.*Expected a folder"),
        ("config.json", "cannot read .*base.config.json: .*Copy the model folder afresh"),
        ("tokenizer.json", "cannot open the tokenizer of .*base"),
    ],
)
def test_a_broken_model_folder_is_named(good, tmp_path, stage, name, message):
    shutil.copytree(good / "base", tmp_path / "base")
    damage(tmp_path / "base", name)
    more = {"baseline_path": str(tmp_path / "base")} if stage == "evaluate" else {}
    with pytest.raises(UsageError, match=message):
        run(stage, good, tmp_path / "out", **{MODEL[stage]: str(tmp_path / "base")}, **more)


@pytest.mark.parametrize("stage", STAGES)
def test_a_model_folder_that_is_not_there_is_named(good, tmp_path, stage):
    options = {MODEL[stage]: "./nowhere"} | ({"baseline_path": "base"} if stage == "evaluate" else {})
    with pytest.raises(UsageError, match=r"model folder '\./nowhere' does not exist.*check the path"):
        run(stage, good, tmp_path, **options)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_broken_adapter_is_named(good, tmp_path, stage, name):
    shutil.copytree(good / "sft", tmp_path / "sft")
    damage(tmp_path / "sft", name)
    with pytest.raises(UsageError, match=r"cannot read .*sft.*(train it again|Train the adapter again)"):
        run(stage, good, tmp_path / "out", **{MODEL[stage]: str(tmp_path / "sft")})


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("other_reward", "belongs to .*other.*Train the reward model on the same base"),
        ("sft", "has no scalar head, so it is no reward model"),
        ("base", "has 2 outputs|would be random"),
        ("./nowhere", r"model folder '\./nowhere' does not exist"),
    ],
)
@pytest.mark.parametrize("stage", ["ppo", "evaluate"])
def test_a_reward_model_that_does_not_fit_is_refused(good, tmp_path, stage, path, message):
    options = {"reward_model_path": path} if stage == "ppo" else {"reward_model_paths": [path]}
    if stage == "evaluate" and path == "other_reward":
        message = "base of neither policy"
    with pytest.raises(UsageError, match=message):
        run(stage, good, tmp_path / "out", **options)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda prompts: [], "cannot be called.*function\\(prompts, responses, \\*\\*columns\\)"),
        (lambda prompts, responses: [], "unexpected keyword argument.*Add \\*\\*columns"),
        (lambda prompts, responses, **columns: [1.0], r"shape \(1,\) for 8 responses; expected one number"),
        (lambda prompts, responses, **columns: [float("nan")] * len(responses), "nan.*expected a finite number"),
        (lambda prompts, responses, **columns: 1 / 0, "'f' failed: ZeroDivisionError"),
        (lambda prompts, responses, **columns: ["good"] * len(responses), "'f' failed.*returns a list of numbers"),
    ],
)
def test_a_reward_function_that_is_wrong_is_named(good, tmp_path, function, message):
    with pytest.raises(UsageError, match=message):
        run("ppo", good, tmp_path, rewards=[(FunctionReward("f", function), 1.0)])


def test_ppo_without_a_reward_says_so_before_anything_is_opened(good, tmp_path):
    with pytest.raises(UsageError, match="set reward_model_path or reward_funcs, or pass a function"):
        run("ppo", good, tmp_path, rewards=[], sft_model_path="./nowhere")


def test_good_input_reaches_the_first_step(good, tmp_path, monkeypatch):
    """The other tests here would pass for nothing if their common input were bad."""
    monkeypatch.setattr(Optimiser, "step", lambda self, loss: 0.0)
    for stage in STAGES:
        run(stage, good, tmp_path / stage, **({"normalise": False} if stage == "reward" else {}))
    run("ppo", good, tmp_path / "p", reward_model_path="base_reward", rewards=[])
    run("ppo", good, tmp_path / "c", reward_model_path="classifier", rewards=[])
    run("evaluate", good, tmp_path / "e", reward_model_paths=["classifier"])
    assert json.loads((tmp_path / "e" / "evaluation.json").read_text())
