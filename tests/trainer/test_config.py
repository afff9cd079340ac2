"""The trainer's `PPOConfig`: TRL's fields and defaults, beside a script's own dataclasses, nothing silently ignored."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import fields

import pytest
from transformers import HfArgumentParser, TrainingArguments

from rlhf_fast import UsageError
from rlhf_fast.runtime.identity import identity
from rlhf_fast.trainer import ModelConfig, PPOConfig, ScriptArguments, get_peft_config, get_quantization_config
from rlhf_fast.trainer.config import SERVED
from rlhf_fast.trainer.fields import FACTS
from tests.trainer.cases import config
from tests.trainer.trl_fields import DEFAULTS, OWN_FIELDS


@pytest.mark.parametrize("name", OWN_FIELDS)
def test_every_field_of_trls_config_is_an_argument(name):
    assert name in {f.name for f in fields(PPOConfig) if f.init}


@pytest.mark.parametrize(("name", "value"), DEFAULTS.items())
def test_defaults_are_trls(name, value):
    assert next(f for f in fields(PPOConfig) if f.name == name).default == value


def test_a_script_parses_it_beside_the_dataclasses_of_its_own():
    parser = HfArgumentParser((ScriptArguments, PPOConfig, ModelConfig))
    script, args, model = parser.parse_args_into_dataclasses(
        ["--dataset_name", "rows.jsonl", "--output_dir", "out", "--per_device_train_batch_size", "4",
         "--gradient_accumulation_steps", "2", "--num_mini_batches", "2", "--missing_eos_penalty", "1.0",
         "--stop_token", "eos", "--use_peft", "--lora_r", "3", "--kl_estimator", "k3", "--use_cpu"]
    )  # fmt: skip
    assert (script.dataset_name, model.use_peft, model.lora_r) == ("rows.jsonl", True, 3)
    assert (args.batch_size, args.mini_batch_size, args.world_size, args.kl_estimator) == (8, 4, 1, "k3")
    assert (args.stop_token, args.score_at, args.loss_mean) == ("eos", "eos+1", "micro")
    assert args.logit_temperature == 0.7 + 1e-7
    lora = get_peft_config(model)
    assert lora is not None and lora.r == 3 and get_quantization_config(model) is None


def test_no_stop_token_is_trls_default_and_runs_past_eos(tmp_path):
    assert config(tmp_path).stop_token == "none"
    assert config(tmp_path, stop_token_id=5).stop_token_id == 5


def test_a_config_made_from_another_is_equal_to_it(tmp_path):
    one = config(tmp_path, stop_token="eos", gradient_accumulation_steps=2, bf16=False, eval_strategy="steps")
    again = dataclasses.replace(one)
    assert {f.name: getattr(one, f.name) for f in fields(one)} == {f.name: getattr(again, f.name) for f in fields(one)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_token": "eos", "stop_token_id": 3}, "both set"),
        ({"num_mini_batches": 3}, "no multiple of num_mini_batches=3"),
        ({"fp16": True}, "use bf16 instead"),
        ({"save_strategy": "best"}, "steps or no"),
        ({"optim": "adafactor"}, "optim='adafactor' is not used: AdamW is, unless you pass optimizers"),
        ({"optim": "sgd"}, "optim='sgd'"),
        ({"fsdp": "full_shard"}, "fsdp"),
        ({"num_sample_generations": -1}, "num_sample_generations"),
        ({"deepspeed": "zero3.json"}, "deepspeed"),
    ],
)
def test_what_cannot_be_served_says_what_to_do(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        config(tmp_path, **options)


def test_a_harmless_field_is_answered_with_one_line(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "rlhf_fast.notices"):
        config(tmp_path, remove_unused_columns=False, gradient_checkpointing_kwargs={"use_reentrant": False})
        config(tmp_path, ds3_gather_for_generation=False)
    assert [record.getMessage() for record in caplog.records] == [
        "remove_unused_columns=False has no effect here: columns beside the prompt go to reward functions.",
        "ds3_gather_for_generation=False has no effect here: DeepSpeed, which would divide the weights, is not used.",
    ]


def kept(args: PPOConfig) -> dict:
    """What a checkpoint says of a run of these arguments."""
    return identity(args.run_config(), args.beside_run())


INERT_VALUES = {
    "max_steps": 10, "data_seed": 3, "ddp_broadcast_buffers": True, "ddp_backend": "gloo",
    "label_smoothing_factor": 0.1,
    "eval_on_start": True, "hub_strategy": "end", "load_best_model_at_end": True, "greater_is_better": True,
    "dataloader_prefetch_factor": 2, "neftune_noise_alpha": 5.0, "full_determinism": True, "tf32": True,
    "include_for_metrics": ["loss"], "accelerator_config": {"split_batches": True}, "optim_args": "a=1",
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), INERT_VALUES.items())
def test_a_field_without_effect_in_trl_too_is_answered_with_one_line(tmp_path, caplog, name, value):
    beside = {"dataloader_num_workers": 1} if name == "dataloader_prefetch_factor" else {}
    with caplog.at_level(logging.WARNING, "rlhf_fast.notices"):
        made = config(tmp_path, **{name: value}, **beside)
        lines = [r.getMessage() for r in caplog.records if r.name == "rlhf_fast.notices"]
    assert lines[len(beside) :] == [f"{name}={value!r} has no effect, here as in TRL's PPO: {FACTS[name].why}."]
    plain = config(tmp_path, **beside)
    assert kept(made) == kept(plain) and made.metric_for_best_model is None


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_torch_fused"])
def test_every_adamw_is_adamw(tmp_path, caplog, name):
    made = config(tmp_path, optim=name, warmup_steps=0)
    assert kept(made) == kept(config(tmp_path)) and not caplog.text


def test_sizes_that_follow_from_others_are_overwritten_and_said(tmp_path, caplog):
    made = config(tmp_path, batch_size=5, mini_batch_size=3, gradient_accumulation_steps=2, num_mini_batches=2)
    assert (made.batch_size, made.mini_batch_size) == (16, 8)
    assert "batch_size=5 has no effect, here as in TRL: it is 16" in caplog.text
    assert "mini_batch_size=3 has no effect, here as in TRL: it is 8" in caplog.text


def test_one_setting_at_a_time_nearly_all_of_trls_config_is_accepted(tmp_path):
    """Refused is what TRL obeys and this engine does not."""
    refused = {"fp16", "fsdp", "fsdp_config", "deepspeed", "optim_target_modules"}
    inherited = {f.name for f in fields(TrainingArguments) if f.init}
    unserved = inherited - SERVED
    own = set(OWN_FIELDS)
    assert unserved - own <= refused | {"parallelism_config"}


def test_quantised_weights_are_refused():
    with pytest.raises(UsageError, match="plain weights"):
        get_quantization_config(ModelConfig(load_in_4bit=True))


def test_a_token_for_the_hub_is_written_nowhere(tmp_path):
    facts = kept(config(tmp_path, hub_token="secret"))
    assert "secret" not in str(facts) and {"kl_coef", "response_length", "preset"} <= set(facts)
