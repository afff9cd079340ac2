"""A run that was stopped and resumed is the run that was not, bit for bit; what cannot go on says why."""

from __future__ import annotations

import json
import logging
import shutil

import pytest

from rlhf_fast.cli import main
from rlhf_fast.runtime.checkpoint import list_checkpoints
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.saving import Checkpoints
from rlhf_fast.train.ppo_metrics import CollapseWatch
from tests.resume.cases import STAGES, STEPS, outcome, prepare, run


class Stopped(Exception):
    """Stands in for whatever ends a process."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("resume"))


def stop_after(monkeypatch, step: int) -> None:
    original = Checkpoints.after

    def after(self, done, metrics):
        original(self, done, metrics)
        if done == step:
            raise Stopped

    monkeypatch.setattr(Checkpoints, "after", after)


def cut_off(monkeypatch, step: int, stage: str, folder, output, **options) -> None:
    """Run until `step` is done."""
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, step)
        run(stage, folder, output, **options)


@pytest.mark.parametrize(
    ("stage", "options"),
    [("sft", {}), ("sft", {"use_peft": False, "lora_r": 16, "lora_alpha": 32.0}), ("reward", {}), ("ppo", {}),
     ("ppo", {"critic": "policy_head", "save_steps": 0.3})],
)  # fmt: skip
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(folder, tmp_path, monkeypatch, stage, options):
    """Stopped twice: after step 3, one step beyond a checkpoint, and after step 4, right behind one."""
    run(stage, folder, tmp_path / "whole", **(options | {"save_strategy": "no", "save_steps": 2}))
    output = tmp_path / "resumed"
    cut_off(monkeypatch, 3, stage, folder, output, **options)
    cut_off(monkeypatch, 4, stage, folder, output, resume="auto", **options)
    run(stage, folder, output, resume="auto", **options)
    whole = outcome(tmp_path / "whole")
    assert outcome(output) == whole
    assert [row["step"] for row in whole["metrics"] if row["step"]] == list(range(1, STEPS + 1))
    assert len(whole) >= 2


@pytest.mark.parametrize("stage", STAGES)
def test_a_finished_run_says_so_and_is_not_trained_again(folder, tmp_path, monkeypatch, caplog, stage):
    run(stage, folder, tmp_path)
    before = outcome(tmp_path)
    monkeypatch.setattr(Checkpoints, "__init__", lambda *_: pytest.fail("a finished run was opened again"))
    run(stage, folder, tmp_path, resume="auto")
    assert f"{tmp_path} is finished already" in caplog.text
    assert outcome(tmp_path) == before


def test_a_run_that_was_cut_off_after_its_last_step_saves_its_results(folder, tmp_path, monkeypatch):
    cut_off(monkeypatch, STEPS, "sft", folder, tmp_path)
    assert not (tmp_path / "adapter_model.safetensors").exists()
    run("sft", folder, tmp_path, resume="auto")
    assert (tmp_path / "adapter_model.safetensors").exists()


def test_a_resume_with_nothing_to_resume_starts_from_the_beginning(folder, tmp_path):
    run("sft", folder, tmp_path / "auto", resume="auto")
    run("sft", folder, tmp_path / "plain")
    assert outcome(tmp_path / "auto") == outcome(tmp_path / "plain")


def test_the_clock_of_the_metrics_goes_on(folder, tmp_path, monkeypatch):
    cut_off(monkeypatch, 3, "sft", folder, tmp_path)
    metrics = tmp_path / "checkpoint-2" / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    run("sft", folder, tmp_path, resume="auto")
    seconds = [json.loads(line)["seconds"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds) and seconds[: len(rows)] == [row["seconds"] for row in rows]


@pytest.mark.parametrize(
    ("stage", "changed"),
    [("sft", {"learning_rate": 0.5, "seed": 3}), ("ppo", {"kl_coef": 0.7}), ("reward", {"eval_dataset_name": None})],
)
def test_a_checkpoint_of_another_config_is_refused_by_the_names_of_the_fields(
    folder, tmp_path, monkeypatch, stage, changed
):
    cut_off(monkeypatch, 2, stage, folder, tmp_path)
    with pytest.raises(UsageError) as error:
        run(stage, folder, tmp_path, resume="auto", **changed)
    assert all(f"{name} was " in str(error.value) for name in changed)
    assert "learning_rate was 0.01 and is 0.5" in str(error.value) or stage != "sft"
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2"]


def test_a_checkpoint_of_other_data_or_rewards_is_refused(folder, tmp_path, monkeypatch):
    data = tmp_path / "data.jsonl"
    data.write_text((folder / "demonstrations.jsonl").read_text())
    cut_off(monkeypatch, 2, "sft", folder, tmp_path / "run", dataset_name=str(data))
    data.write_text(data.read_text().replace("w9", "w10"))
    with pytest.raises(UsageError, match="contents of the data was"):
        run("sft", folder, tmp_path / "run", dataset_name=str(data), resume="auto")


def test_a_checkpoint_of_models_that_were_trained_anew_is_refused(folder, tmp_path, monkeypatch):
    shutil.copytree(folder / "sft_adapter", tmp_path / "sft")
    cut_off(monkeypatch, 2, "ppo", folder, tmp_path / "run", sft_model_path=str(tmp_path / "sft"))
    weights = tmp_path / "sft" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(UsageError, match="contents of the models was"):
        run("ppo", folder, tmp_path / "run", sft_model_path=str(tmp_path / "sft"), resume="auto")


@pytest.mark.parametrize(("place", "key", "value"), [("sft", "lora_alpha", 3), ("base", "rms_norm_eps", 1e-3)])
def test_a_checkpoint_of_models_whose_configs_were_changed_is_refused(folder, tmp_path, monkeypatch, place, key, value):
    """The weights are the same. Where the base of an adapter lies may change."""
    shutil.copytree(folder / "base", tmp_path / "base")
    shutil.copytree(folder / "sft_adapter", tmp_path / "sft")
    edit(tmp_path / "sft" / "adapter_config.json", "base_model_name_or_path", str(tmp_path / "base"))
    options = {"sft_model_path": str(tmp_path / "sft"), "reward_model_path": None}
    cut_off(monkeypatch, 2, "ppo", folder, tmp_path / "run", **options)
    config = tmp_path / place / ("adapter_config.json" if place == "sft" else "config.json")
    before = edit(config, key, value)
    with pytest.raises(UsageError, match="contents of the models was"):
        run("ppo", folder, tmp_path / "run", resume="auto", **options)
    config.write_text(before)
    (tmp_path / "base").rename(tmp_path / "moved")
    edit(tmp_path / "sft" / "adapter_config.json", "base_model_name_or_path", str(tmp_path / "moved"))
    run("ppo", folder, tmp_path / "run", resume="auto", **options)


def edit(config, key: str, value) -> str:
    """Set `key` in a JSON file, which is laid out anew; returns what the file was."""
    before = config.read_text()
    config.write_text(json.dumps(json.loads(before) | {key: value}))
    return before


def test_another_stages_checkpoint_is_refused(folder, tmp_path, monkeypatch):
    cut_off(monkeypatch, 2, "sft", folder, tmp_path)
    with pytest.raises(UsageError, match="stage was 'sft' and is 'ppo'"):
        run("ppo", folder, tmp_path, resume="auto")


def test_a_run_may_go_on_for_longer_and_not_for_less_than_it_has_done(folder, tmp_path):
    run("ppo", folder, tmp_path, total_episodes=4 * 6, lr_scheduler_type="constant")
    run("ppo", folder, tmp_path, total_episodes=6 * 6, lr_scheduler_type="constant", resume="auto")
    run("ppo", folder, tmp_path / "whole", total_episodes=6 * 6, lr_scheduler_type="constant")
    assert outcome(tmp_path) == outcome(tmp_path / "whole")
    with pytest.raises(UsageError, match="of step 6 and the run has 2 steps in all"):
        run("ppo", folder, tmp_path, total_episodes=2 * 6, lr_scheduler_type="constant", resume="auto")
    assert outcome(tmp_path) == outcome(tmp_path / "whole")


def test_a_longer_run_takes_the_learning_rates_of_its_new_length(folder, tmp_path):
    run("sft", folder, tmp_path, lr_scheduler_type="linear", warmup_steps=0, num_train_epochs=2 / 3)
    run("sft", folder, tmp_path, lr_scheduler_type="linear", warmup_steps=0, resume="auto")
    rates = [row["lr"] for row in outcome(tmp_path)["metrics"] if row["step"]]
    assert rates == pytest.approx([0.5e-2, 0, 3 / 6 * 1e-2, 2 / 6 * 1e-2, 1 / 6 * 1e-2, 0])


def test_fields_that_only_change_rounding_may_differ(folder, tmp_path, monkeypatch):
    cut_off(monkeypatch, 2, "sft", folder, tmp_path)
    run("sft", folder, tmp_path, resume="auto", max_tokens_per_micro_batch=12, activation_checkpointing=True)
    assert outcome(tmp_path)["metrics"][-1]["step"] == STEPS


def test_a_run_that_was_cut_off_is_not_overwritten_by_a_run_without_resume(folder, tmp_path, monkeypatch):
    cut_off(monkeypatch, 3, "sft", folder, tmp_path)
    with pytest.raises(UsageError, match=r"cut off \(checkpoint-2\)\. Go on with resume=auto"):
        run("sft", folder, tmp_path)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2"]


def test_a_path_names_the_checkpoint_and_later_ones_are_written_anew(folder, tmp_path):
    run("sft", folder, tmp_path, save_total_limit=None)
    before = outcome(tmp_path)
    changed = (tmp_path / "checkpoint-4").stat().st_mtime_ns
    run("sft", folder, tmp_path, save_total_limit=None, resume=str(tmp_path / "checkpoint-2"))
    assert outcome(tmp_path) == before
    assert (tmp_path / "checkpoint-4").stat().st_mtime_ns > changed
    run("sft", folder, tmp_path / "elsewhere", resume=str(tmp_path / "checkpoint-2"))
    assert outcome(tmp_path / "elsewhere") == before


def test_a_path_elsewhere_does_not_overwrite_a_run_that_was_cut_off(folder, tmp_path, monkeypatch):
    for name in ("one", "two"):
        cut_off(monkeypatch, 4, "sft", folder, tmp_path / name)
    with pytest.raises(UsageError, match=r"two holds checkpoints of a run that was cut off"):
        run("sft", folder, tmp_path / "two", resume=str(tmp_path / "one" / "checkpoint-2"))
    assert [path.name for path in list_checkpoints(tmp_path / "two")] == ["checkpoint-4", "checkpoint-2"]


def test_the_command_line_takes_the_fields_of_checkpoints(folder, tmp_path, capsys):
    words = f"sft --model_name_or_path {folder}/base --dataset_name {folder}/demonstrations.jsonl --use_cpu"
    words += f" --output_dir {tmp_path} --disable_tqdm True --save_steps 1 --save_total_limit 1 --resume auto"
    words += " --metric_for_best_model lr --greater_is_better True --num_train_epochs 3"
    assert main(words.split()) == 0
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-1"]
    assert main([*words.split(), "--learning_rate", "1"]) == 2
    assert "run.json is of another run" in capsys.readouterr().err


def test_a_path_that_holds_no_whole_checkpoint_is_refused(folder, tmp_path):
    with pytest.raises(UsageError, match=r"resume='.*nowhere' cannot be used: it has no manifest\.json"):
        run("sft", folder, tmp_path, resume=str(tmp_path / "nowhere"))


def test_the_watch_for_collapse_goes_on_where_it_was(caplog):
    first = CollapseWatch()
    short = {"rollout/truncated_fraction": 0.0}
    first.look({"rollout/distinct_2": 0.9, "rollout/repetition": 0.5} | short)
    second = CollapseWatch()
    second.load_state(first.state())
    second.look({"rollout/distinct_2": 0.5, "rollout/repetition": 0.5} | short)
    assert ["distinct-2" in record.message for record in caplog.records] == [False, True]


def test_where_a_run_goes_on_is_said(folder, tmp_path, monkeypatch, caplog):
    cut_off(monkeypatch, 3, "sft", folder, tmp_path)
    with caplog.at_level(logging.INFO, "rlhf_fast.runtime.saving"):
        run("sft", folder, tmp_path, resume="auto")
    assert f"resumed from {tmp_path / 'checkpoint-2'}: step 2 of {STEPS} is done" in caplog.text
