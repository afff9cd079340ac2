"""Bad data, choices and outputs: one clear error that names the remedy, before a step is taken."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rlhf_fast import UsageError
from rlhf_fast.cli import main
from rlhf_fast.runtime.optimiser import Optimiser
from tests.bad_input_cases import MODEL, STAGES, run, write_good
from tests.preferences.cases import write_rows
from tests.tiny_tokenizer import tiny_tokenizer


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return write_good(tmp_path_factory.mktemp("good"))


@pytest.fixture(autouse=True)
def no_work(monkeypatch):
    """Fails where an optimiser steps: the error has to come before."""
    monkeypatch.setattr(Optimiser, "step", lambda self, loss: pytest.fail("a step was taken"))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("empty_prompt.jsonl", "empty_prompt.jsonl:2: .*empty.*Mend the row|a prompt is empty"),
        ("long_prompt.jsonl", "6[0-9] tokens"),
        ("empty_file.jsonl", "no usable row in .*empty_file.jsonl"),
        ("no_columns.jsonl", "columns are text_of_the_prompt; expected"),
        ("nowhere.jsonl", "no data at 'nowhere.jsonl'.*Check the path"),
    ],
)
def test_data_that_cannot_be_used_is_named(good, tmp_path, stage, data, message):
    with pytest.raises(UsageError, match=message):
        run(stage, good, tmp_path / "out", dataset_name=data)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_an_empty_conversation_turn_is_an_empty_prompt_too(good, tmp_path, stage):
    if stage == "generate":
        with pytest.raises(UsageError, match="prompt 2 of the given prompts: a prompt is empty"):
            run(stage, good, tmp_path, dataset_name=None, prompts=["w1", " "])
        return
    row = {"prompt": [{"role": "user", "content": " "}], "completion": "w1", "chosen": "w1", "rejected": "w2"}
    with pytest.raises(UsageError, match=r"data.jsonl:1: .*content of a message of the user is empty"):
        run(stage, good, tmp_path, dataset_name=write_rows(tmp_path / "data.jsonl", [row]))


@pytest.mark.parametrize("stage", ["reward", "ppo", "evaluate", "generate"])
@pytest.mark.parametrize(
    ("length", "message"), [(0, "response_length=0 cannot be used"), (64, "response_length=64|max_length")]
)
def test_a_response_without_room_is_refused(good, tmp_path, stage, length, message):
    with pytest.raises(UsageError, match=message):
        run(stage, good, tmp_path, response_length=length)


def test_every_prompt_of_ppo_is_checked_against_the_models_context_not_only_max_length(good, tmp_path):
    with pytest.raises(UsageError, match=r"prompt 2 of .*has 65 tokens and 60 fit beside the response"):
        run("ppo", good, tmp_path, dataset_name="long_prompt.jsonl", max_length=1000)


@pytest.mark.parametrize("stage", STAGES)
def test_conversations_need_a_chat_template(good, tmp_path, stage):
    shutil.copytree(good / "base", tmp_path / "base")
    tiny_tokenizer(chat=False).save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink(missing_ok=True)
    more = {"baseline_path": "base"} if stage == "evaluate" else {}
    with pytest.raises(UsageError, match=r"has no chat template. Give one with --chat_template_path"):
        run(stage, good, tmp_path, dataset_name="chat.jsonl", **{MODEL[stage]: str(tmp_path / "base")}, **more)


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "generate"])
def test_a_tokenizer_without_eos_names_the_remedy(good, tmp_path, stage):
    shutil.copytree(good / "base", tmp_path / "base")
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(UsageError, match=r"has no EOS token.*[Ss]et (eos_token|stop_token_id)"):
        run(stage, good, tmp_path / "out", **{MODEL[stage]: str(tmp_path / "base")})


@pytest.mark.parametrize("stage", STAGES)
def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_opened(good, tmp_path, stage):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot be written: .*file is a file. Choose another folder"):
        run(stage, good, tmp_path / "file" / "out", **{MODEL[stage]: "./nowhere"})


@pytest.mark.parametrize("verb", STAGES)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "first"], "invalid int value: 'first'"),
        (["--sead", "1"], "unknown field 'sead' in the command line; did you mean seed"),
        (["--config", "./nowhere.yaml"], "cannot read the config file './nowhere.yaml'"),
        ([], "needs? "),
    ],
)
def test_the_command_line_prints_one_message_and_leaves_with_2(capsys, verb, arguments, message):
    assert main([verb, *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"rlhf-fast {verb}: ") and message.rstrip("? ") in lines[0]


def test_yaml_of_a_wrong_kind_leaves_with_2(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("learning_rate: fast\n")
    assert main(["sft", "--config", str(tmp_path / "c.yaml")]) == 2
    assert "learning_rate is 'fast'" in capsys.readouterr().err
