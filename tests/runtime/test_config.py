"""Configs from Python, YAML and the command line: wrong kinds and values are named, and nothing is accepted in vain."""

from __future__ import annotations

import dataclasses
import json

import pytest

from rlhf_fast import EvaluateConfig, GenerateConfig, PPORunConfig, RewardConfig, SFTConfig, UsageError
from rlhf_fast.runtime.output import refuse_unwritable
from rlhf_fast.runtime.parse import parse_config
from rlhf_fast.runtime.tracking import Tracker, read_metrics


def parsed(config_class, tmp_path, text: str, *arguments: str):
    (tmp_path / "c.yaml").write_text(text)
    return parse_config(config_class, ["--config", str(tmp_path / "c.yaml"), *arguments], prog="rlhf-fast verb")


def test_yaml_gives_the_kinds_that_the_fields_have(tmp_path):
    config = parsed(
        PPORunConfig, tmp_path,
        "learning_rate: 1e-4\nlora_layers: [0, 1]\nuse_cpu: true\nkl_target: null\nlora_target_modules: q_proj\n"
        "lr_scheduler_type: cosine\nlr_scheduler_kwargs: {num_cycles: 2}\nsft_model_path: 7\n",
    )  # fmt: skip
    assert (config.learning_rate, config.lora_layers, config.kl_target) == (1e-4, [0, 1], None)
    assert (config.lora_target_modules, config.sft_model_path, config.use_cpu) == (["q_proj"], "7", True)
    assert config.lr_scheduler_kwargs == {"num_cycles": 2}


def test_a_list_of_texts_may_hold_what_looks_like_an_option(tmp_path):
    assert parsed(GenerateConfig, tmp_path, "prompts: ['--top_k', 5]").prompts == ["--top_k", "5"]
    assert parsed(GenerateConfig, tmp_path, "prompts: hello").prompts == ["hello"]


def test_the_command_line_wins_over_yaml(tmp_path):
    config = parsed(PPORunConfig, tmp_path, "response_length: 9\nlam: 0.5", "--response_length", "4")
    assert (config.response_length, config.lam) == (4, 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: fast", "learning_rate is 'fast' in .*c.yaml"),
        ("learning_rate: [1]", r"learning_rate=\[1\] cannot be used: expected a number"),
        ("learning_rate: null", "learning_rate=None cannot be used"),
        ("use_cpu: perhaps", "use_cpu is 'perhaps'"),
        ("preset: trll", "preset='trll' cannot be used: expected one of rlhf_fast, trl"),
        ("lora_layers: [one]", "lora_layers is 'one'"),
        ("lr_scheduler_type: cosinus", "cosinus is not a valid SchedulerType"),
        ("learning_rat: 1", "unknown field 'learning_rat' in .*did you mean learning_rate"),
        ("[1, 2]", "expected a mapping"),
        ("a: [", "cannot read the config file"),
    ],
)
def test_yaml_that_cannot_be_used_names_field_and_file(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        parsed(PPORunConfig, tmp_path, text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rate", "fast"], "invalid float value: 'fast'.*--help"),
        (["--kl_estimator", "k9"], "invalid choice: 'k9'.*k1"),
        (["--learning_rate"], "expected one argument"),
        (["--config"], "expected one argument: the path of a YAML file"),
        (["--top_k", "5"], "unknown field 'top_k' in the command line"),
    ],
)
def test_arguments_that_cannot_be_used_are_usage_errors_not_exits(arguments, message):
    with pytest.raises(UsageError, match=message):
        parse_config(PPORunConfig, arguments, prog="rlhf-fast ppo")


@pytest.mark.parametrize(
    ("config_class", "options", "message"),
    [
        (PPORunConfig, {"preset": "trll"}, "expected one of rlhf_fast, trl, openrlhf, verl"),
        (PPORunConfig, {"score_at": "eos+2"}, "expected one of eos, eos"),
        (PPORunConfig, {"loss_mean": "mean"}, "loss_mean='mean'"),
        (PPORunConfig, {"dtype": "float16"}, "dtype='float16'"),
        (PPORunConfig, {"response_length": "5"}, "expected a whole number"),
        (PPORunConfig, {"dual_clip": 0.5}, "dual_clip=0.5"),
        (PPORunConfig, {"use_peft": False, "dtype": "bfloat16"}, "round small updates away"),
        (SFTConfig, {"per_device_train_batch_size": 0}, "per_device_train_batch_size=0"),
        (SFTConfig, {"num_train_epochs": 0.0}, "num_train_epochs=0.0"),
        (SFTConfig, {"seed": 1.5}, "seed=1.5"),
        (SFTConfig, {"warmup_steps": -1}, "warmup_steps = -1"),
        (SFTConfig, {"save_strategy": "epoch"}, "save_strategy=.*expected steps or no"),
        (SFTConfig, {"save_strategy": "never"}, "never"),
        (SFTConfig, {"save_steps": 0}, "save_steps=0"),
        (SFTConfig, {"save_total_limit": 0}, "save_total_limit=0"),
        (SFTConfig, {"metric_for_best_model": "loss", "save_strategy": "no"}, "metric_for_best_model='loss'"),
        (SFTConfig, {"greater_is_better": True}, "greater_is_better=True"),
        (SFTConfig, {"use_peft": False, "lora_r": 4}, "lora_r=4 cannot be used: expected its default"),
        (RewardConfig, {"lora_layers": 3}, "lora_layers=3"),
        (EvaluateConfig, {"on_bad_row": "ignore"}, "on_bad_row='ignore'"),
        (GenerateConfig, {"prompts": "hello"}, "prompts='hello' cannot be used: expected a list"),
    ],
)
def test_values_from_python_are_checked_too(config_class, options, message):
    with pytest.raises(UsageError, match=message):
        config_class(**options)


@pytest.mark.parametrize("config_class", [SFTConfig, RewardConfig, PPORunConfig])
def test_a_config_can_be_made_from_another(config_class):
    assert dataclasses.replace(config_class(use_cpu=True, seed=3), learning_rate=0.5).seed == 3


@pytest.mark.parametrize("config_class", [SFTConfig, RewardConfig, PPORunConfig])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logging_steps", 7),
        ("bf16", True),
        ("max_steps", 3),
        ("optim", "sgd"),
        ("resume_from_checkpoint", "auto"),
        ("load_best_model_at_end", True),
    ],
)
def test_an_inherited_field_that_does_nothing_is_refused(config_class, field, value):
    with pytest.raises(UsageError, match=f"{field}=.*has no effect"):
        config_class(use_cpu=True, **{field: value})


def test_a_folder_that_can_be_made_passes_and_is_not_made(tmp_path):
    refuse_unwritable("output_dir", tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"output_dir=.*is a file\. Choose another folder"):
        refuse_unwritable("output_dir", tmp_path / "file" / "b")


def test_metrics_that_are_not_finite_are_null_on_disk_and_nan_when_read(tmp_path):
    with Tracker(tmp_path, "stage", 1, {}, quiet=True) as tracker:
        tracker.log(1, {"loss": float("nan"), "kl": 0.5})
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert line["loss"] is None and line["kl"] == 0.5
    (row,) = read_metrics(tmp_path)
    assert row["loss"] != row["loss"]
