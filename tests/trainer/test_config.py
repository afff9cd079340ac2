"""The trainer's `PPOConfig`: TRL's fields and defaults, beside a script's own dataclasses, nothing silently ignored."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import fields

import pytest
from transformers import HfArgumentParser

from rlhf_fast import UsageError
from rlhf_fast.runtime.identity import identity
from rlhf_fast.trainer import ModelConfig, PPOConfig, ScriptArguments, get_peft_config, get_quantization_config
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
        ({"batch_size": 5}, "batch_size=5 contradicts.*it is 8"),
        ({"num_mini_batches": 3}, "no multiple of num_mini_batches=3"),
        ({"ds3_gather_for_generation": False}, "DeepSpeed"),
        ({"fp16": True}, "use bf16 instead"),
        ({"max_steps": 10}, "total_episodes"),
        ({"eval_strategy": "epoch"}, "steps or no"),
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
    assert [record.getMessage() for record in caplog.records] == [
        "remove_unused_columns=False has no effect here: columns beside the prompt go to reward functions."
    ]


def test_quantised_weights_are_refused():
    with pytest.raises(UsageError, match="plain weights"):
        get_quantization_config(ModelConfig(load_in_4bit=True))


def test_a_token_for_the_hub_is_written_nowhere(tmp_path):
    kept = identity(config(tmp_path, hub_token="secret"), {})
    assert "secret" not in str(kept) and {"kl_coef", "response_length", "preset"} <= set(kept)
