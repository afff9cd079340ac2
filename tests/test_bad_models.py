"""Models, adapters and rewards that are broken, missing or do not fit: named with the remedy, before any step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rlhf_fast import FunctionReward, UsageError
from rlhf_fast.model.load import load_tokenizer
from rlhf_fast.runtime.optimiser import Optimiser
from tests.bad_input_cases import MODEL, STAGES, run, write_good
from tests.tiny_tokenizer import tiny_tokenizer


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


@pytest.mark.parametrize("stage", ["sft", "generate"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "holds a JSON list, expected an object"),
        (b"7", "holds a JSON int, expected an object"),
        (b'{"r": "\xff"}', "'utf-8' codec can't decode"),
        (b"[" * 5000, "recursion"),
    ],
)
def test_a_config_of_another_kind_is_named_in_models_and_adapters(good, tmp_path, stage, content, message):
    for folder, name in (("base", "config.json"), ("sft", "adapter_config.json")):
        shutil.copytree(good / folder, tmp_path / folder)
        (tmp_path / folder / name).write_bytes(content)
        with pytest.raises(
            UsageError, match=rf"cannot read .*{name}: .*{message}.*(copy it|Copy the model folder) afresh"
        ):
            run(stage, good, tmp_path / "out", **{MODEL[stage]: str(tmp_path / folder)})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("r", "8", "r in adapter_config.json is '8', expected a positive whole number"),
        ("r", 0, "r in adapter_config.json is 0, expected a positive whole number"),
        ("lora_alpha", None, "lora_alpha in adapter_config.json is None, expected a number"),
        ("target_modules", 5, "target_modules in adapter_config.json is 5, expected a pattern or a list"),
        ("target_modules", "(", r"target_modules in adapter_config.json is '\(', expected a pattern"),
        ("rank_pattern", [1], r"rank_pattern in adapter_config.json is \[1\], expected an object"),
        ("peft_type", "IA3", "is of IA3Config; expected LoRA"),
        ("base_model_name_or_path", 7, r"does not name its base model \(got 7\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")
def test_a_field_of_another_kind_in_an_adapter_is_named(good, tmp_path, field, value, message):
    shutil.copytree(good / "sft", tmp_path / "sft")
    config = json.loads((tmp_path / "sft" / "adapter_config.json").read_text())
    (tmp_path / "sft" / "adapter_config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(UsageError, match=message):
        run("generate", good, tmp_path / "out", model_path=str(tmp_path / "sft"))


@pytest.mark.parametrize("path", ["runs/checkpoint", "sft-of-yesterday"])
@pytest.mark.parametrize("stage", ["sft", "ppo", "generate"])
def test_a_path_like_a_hub_name_is_said_to_be_no_folder_here(good, tmp_path, monkeypatch, stage, path):
    def absent(*_, **__):
        raise OSError("there is no such repository")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", absent)
    with pytest.raises(UsageError, match=rf"'{path}' \(no such folder is here, so it was taken for a hub name"):
        run(stage, good, tmp_path / "out", **{MODEL[stage]: path})


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "generate"])
@pytest.mark.parametrize("kind", ["EOS", "a token of the chat template"])
def test_a_token_without_a_row_in_the_embeddings_is_named_and_a_pad_token_may_have_none(good, tmp_path, stage, kind):
    shutil.copytree(good / "base", tmp_path / "base")
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(tmp_path / "base")
    assert load_tokenizer(str(tmp_path / "base")).pad_token_id == 97  # the model has rows 0 to 96
    tokenizer.add_special_tokens({"eos_token": "[END]"} if kind == "EOS" else {"additional_special_tokens": ["[BOT]"]})
    if kind != "EOS":
        tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "[BOT]")
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(UsageError, match=rf"{kind}, has id 98 and the embeddings of .*base' have 97 rows. Resize them"):
        run(stage, good, tmp_path / "out", **{MODEL[stage]: str(tmp_path / "base")})
