"""Configs from Python, YAML and the command line: wrong kinds and values are named, and nothing is accepted in vain."""

from __future__ import annotations

import dataclasses
import json
from typing import get_args

import pytest
import torch.distributed as dist
from transformers import SchedulerType

from rlhf_fast import EvaluateConfig, GenerateConfig, PPORunConfig, RewardConfig, SFTConfig, UsageError, run_sft
from rlhf_fast.demo.config import DemoConfig
from rlhf_fast.export.config import ExportConfig
from rlhf_fast.runtime.config import Schedule, StageConfig, above, at_least, fields_read, option
from rlhf_fast.runtime.identity import as_told, identity, refuse_another_run
from rlhf_fast.runtime.launch import LAUNCHED
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
        ("lr_scheduler_type: cosinus", "lr_scheduler_type='cosinus' cannot be used: expected one of linear, cosine"),
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
        (SFTConfig, {"adam_beta2": 1.0}, "adam_beta2=1.0 cannot be used: expected from 0 to below 1"),
        (SFTConfig, {"save_steps": 2.5}, "save_steps=2.5 cannot be used: expected a whole number, or a share below 1"),
        (SFTConfig, {"lr_scheduler_kwargs": "{num_cycles: 2}"}, "lr_scheduler_kwargs='{num_cycles: 2}' cannot be read"),
        (SFTConfig, {"lr_scheduler_kwargs": "7"}, "lr_scheduler_kwargs=7 cannot be used: expected a mapping"),
        (SFTConfig, {"output_dir": None}, "output_dir=None cannot be used: expected text"),
        (DemoConfig, {"seed": "1"}, "seed='1' cannot be used: expected a whole number"),
        (SFTConfig, {"warmup_steps": -1}, "warmup_steps=-1 cannot be used: expected 0 or more"),
        (
            SFTConfig,
            {"save_strategy": "epoch"},
            "expected one of steps, no. Save_steps below 1",
        ),
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
def test_a_field_of_transformers_that_would_do_nothing_is_refused(config_class, field, value):
    with pytest.raises(UsageError, match=f"unknown field '{field}' in {config_class.__name__}; (use|remove)"):
        config_class(use_cpu=True, **{field: value})


CONFIGS = [SFTConfig, RewardConfig, PPORunConfig, GenerateConfig, EvaluateConfig, ExportConfig, DemoConfig]


@pytest.mark.parametrize("config_class", CONFIGS)
@pytest.mark.parametrize("name", ["output_dirs", "q7"])
def test_a_name_that_no_field_has_is_answered_from_python_too(config_class, name):
    own = config_class.__name__
    words = rf"help\({own}\) lists the fields" if name == "q7" else "did you mean output_(dir|file)"
    with pytest.raises(UsageError, match=f"unknown field '{name}' in {own}; {words}"):
        config_class(**{name: 1})


def test_a_script_may_give_its_own_config_arguments_of_its_own():
    class Mine(SFTConfig):
        def __init__(self, size: int, **options):
            super().__init__(learning_rate=size / 100, **options)

    assert Mine(size=3).learning_rate == 0.03
    with pytest.raises(TypeError, match="lr"):
        Mine(size=3, lr=1)


def test_making_a_config_starts_nothing_and_a_run_connects_its_processes(monkeypatch, tmp_path):
    """Of two processes, of which the launcher did not say the second's address."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    config = SFTConfig(output_dir=str(tmp_path / "out"), per_device_train_batch_size=3, use_cpu=True)
    assert config.batch_size == 6 and not dist.is_initialized()
    with pytest.raises(UsageError, match=r"WORLD_SIZE is 2 and RANK, .* not set"):
        run_sft(config)
    assert not (tmp_path / "out").exists()


@dataclasses.dataclass
class Declared(StageConfig):
    """A field of each kind, and one that names nothing."""

    stage = "declared"
    plain: int = option(3, "A number.", check=at_least(2))
    rate: float | None = option(None, "A rate.", check=above(0), resume="free", read="step")
    names: list[str] = option(["a"], "Names.", resume="rounding")
    far: int = option(1, "How far.", resume="length")
    part: int = option(1, "A part.", resume="division", read="train")


def test_a_field_carries_its_check():
    assert Declared(plain=2, rate=None).rate is None
    with pytest.raises(UsageError, match=r"plain=1 cannot be used: expected at least 2\."):
        Declared(plain=1)
    with pytest.raises(UsageError, match=r"rate=0 cannot be used: expected a number above 0, or nothing\."):
        Declared(rate=0)
    one, other = Declared(), Declared()
    one.names.append("b")
    assert other.names == ["a"] and Declared(names=["x"]).names == ["x"]


def test_a_field_carries_what_it_means_for_a_resume_and_when_it_is_read():
    told = identity(Declared(far=2), {"data": "d"})
    assert {"plain": 3, "far": 2, "data": "d", "batch_size": 8, "stage": "declared"}.items() <= told.items()
    assert not {"rate", "names", "part", "output_dir", "per_device_train_batch_size"} & set(told)
    assert fields_read(Declared, "step") == ["save_strategy", "save_total_limit", "rate"]
    assert fields_read(Declared, "train") == ["resume", "disable_tqdm", "save_steps", "part"]


def test_a_checkpoint_may_be_older_than_a_field_that_has_its_default(tmp_path):
    own = identity(Declared(far=2), {})
    old = {name: value for name, value in own.items() if name != "plain"} | {"far": 1}
    refuse_another_run(tmp_path, as_told(old, Declared()), own, Declared())
    changed = identity(Declared(plain=4), {})
    with pytest.raises(UsageError, match="of another run: plain was 3 and is 4"):
        refuse_another_run(tmp_path, as_told(old, Declared()), changed, Declared())


@pytest.mark.parametrize("config_class", [SFTConfig, RewardConfig, PPORunConfig])
def test_a_field_that_a_stage_declares_anew_keeps_what_it_means(config_class):
    shared = StageConfig.__dataclass_fields__
    for f in dataclasses.fields(config_class):
        if f.name in shared:
            own, known = ((x.check and x.check.words, x.resume, x.read) for x in (f, shared[f.name]))
            assert own == known, f.name


@dataclasses.dataclass
class Again(Declared):
    """As somebody may write it: a value, a plain field, an option that states one fact, and one that states another."""

    plain: int = 5
    rate: float | None = dataclasses.field(default=0.5, metadata={"help": "Another rate."})
    names: list[str] = option(["c"], "Other names.")
    far: int = option(2, "How far.", check=at_least(2))
    part: int = option(4, "A part.", resume="result")


def test_a_field_that_is_declared_again_keeps_the_facts_that_it_does_not_state():
    one = Again()
    assert (one.plain, one.rate, one.names, one.far, one.part) == (5, 0.5, ["c"], 2, 4)
    for name, value, message in (
        ("plain", 1, r"plain=1 cannot be used: expected at least 2\."),
        ("rate", 0, r"rate=0 cannot be used: expected a number above 0, or nothing\."),
        ("far", 1, r"far=1 cannot be used: expected at least 2\."),
    ):
        with pytest.raises(UsageError, match=message):
            Again(**{name: value})
    told = identity(one, {})
    assert {"plain": 5, "far": 2, "part": 4}.items() <= told.items() and not {"rate", "names"} & set(told)
    assert "part" not in identity(Declared(), {}) and Declared(far=1).far == 1  # the base's own are as they were
    assert "rate" in fields_read(Again, "step") and "part" in fields_read(Again, "train")
    assert Again.__dataclass_fields__["rate"].metadata["help"] == "Another rate."
    assert Again.__dataclass_fields__["plain"].metadata["help"] == "A number."
    one.names.append("d")
    assert Again().names == ["c"]


def test_the_bound_of_the_key_value_cache_changes_no_result_and_may_change_before_a_resume(tmp_path):
    """A checkpoint of a version that counted it is no other run either."""
    told = identity(PPORunConfig(max_kv_cache_gb=4.0), {})
    assert told == identity(PPORunConfig(), {})
    refuse_another_run(tmp_path, as_told(told | {"max_kv_cache_gb": 4.0}, PPORunConfig()), told, PPORunConfig())
    with pytest.raises(UsageError, match=r"max_kv_cache_gb=-1"):
        PPORunConfig(max_kv_cache_gb=-1)


def test_schedules_are_transformers_but_for_those_that_follow_evaluations():
    assert {*get_args(Schedule), "reduce_lr_on_plateau", "greedy"} == {one.value for one in SchedulerType}
    assert SFTConfig(lr_scheduler_type=SchedulerType.COSINE).lr_scheduler_type == "cosine"


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
