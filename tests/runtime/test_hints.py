"""Names that people know from elsewhere lead to what serves them, or to the word that nothing does."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import dataclass

import pytest
from transformers import TrainingArguments

from rlhf_fast import (
    DemoConfig,
    EvaluateConfig,
    ExportConfig,
    GenerateConfig,
    PPOConfig,
    PPORunConfig,
    RewardConfig,
    SFTConfig,
    UsageError,
)
from rlhf_fast.cli import VERBS, load, main
from rlhf_fast.runtime import hints
from rlhf_fast.runtime.config import field_names
from rlhf_fast.runtime.parse import parse_config
from tests.trainer.trl_fields import DEFAULTS

FIELDS = {verb: field_names(load(VERBS[verb].config)) for verb in VERBS}


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("grpo", "not served: what is served is PPO"), ("DPO", "preferences train a reward model"),
        ("kto", "rlhf-fast reward"), ("orpo", "not served"), ("rloo", "whose critic"),
        ("train", "sft, then reward, then ppo"),
        ("chat", "generate answers prompts"), ("serve", "export writes a model"), ("merge", "use export"),
        ("eval", "use evaluate"), ("rm", "use reward"), ("reward-model", "use reward"),
        ("check", "before their first step"), ("estimate", "use plan"), ("benchmark", "use bench"),
        ("label", "rows of a file"), ("stf", "did you mean sft?"), ("evalute", "did you mean evaluate?"),
        ("resume", "--resume auto"),
    ],
)  # fmt: skip
def test_an_unknown_verb_is_answered_with_what_serves_it(capsys, verb, words):
    assert main([verb, "--learning_rate", "1"]) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith(f"unknown verb '{verb}'; ") and words in first
    assert any("usage: rlhf-fast VERB" in line for line in rest)


def test_a_verb_of_which_nothing_is_known_gets_the_list_of_verbs(capsys):
    assert main(["zzzz"]) == 2
    assert capsys.readouterr().err.startswith("unknown verb 'zzzz'\n\nusage:")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rlhf-fast 0.")


@pytest.mark.parametrize(
    ("verb", "arguments", "words"),
    [
        ("sft", ["--lr", "1"], "unknown field 'lr' in the command line; use learning_rate."),
        ("sft", ["--batch-size", "1"], "'batch-size' in the command line; use per_device_train_batch_size (times"),
        ("ppo", ["--epochs", "1"], "use num_train_epochs or total_episodes."),
        ("sft", ["--epochs=3"], "unknown field 'epochs' in the command line; use num_train_epochs."),
        ("ppo", ["--max_new_tokens", "1"], "use response_length or max_length."),
        ("generate", ["--max_new_tokens", "1"], "use response_length."),
        ("sft", ["--model", "x"], "use model_name_or_path."), ("ppo", ["--model", "x"], "use sft_model_path."),
        ("export", ["--model", "x"], "use model_path."), ("reward", ["--data", "x"], "use dataset_name."),
        ("ppo", ["--beta", ".1"], "use kl_coef."), ("sft", ["--beta", ".1"], "not served: it weighs a KL penalty"),
        ("ppo", ["--num_generations", "8"], "not served: PPO samples one response"),
        ("generate", ["--num_generations", "8"], "use num_responses."),
        ("sft", ["--load_in_4bit"], "not served: adapters are trained on plain weights"),
        ("reward", ["--load_in_8bit", "true"], "not served: adapters"), ("sft", ["--lora_rank", "4"], "use lora_r."),
        ("sft", ["--lora_dropout", "0.1"], "same network"),
        ("sft", ["--learning_rat", "1"], "did you mean learning_rate"),
        ("sft", ["--zzzzzz", "1"], "--help lists the fields."), ("sft", ["rows.jsonl"], "belongs to no field"),
        ("ppo", ["learning_rate=1"], "belongs to no field; a field is given as --field value"),
    ],
)  # fmt: skip
def test_an_unknown_field_is_answered_with_what_serves_it(verb, arguments, words):
    with pytest.raises(UsageError) as error:
        parse_config(load(VERBS[verb].config), arguments, prog=f"rlhf-fast {verb}")
    assert words in str(error.value)


def test_a_field_of_a_file_is_answered_too(tmp_path):
    (tmp_path / "c.yaml").write_text("lr: 1\n")
    with pytest.raises(UsageError, match=r"unknown field 'lr' in .*c\.yaml; use learning_rate\."):
        parse_config(load(VERBS["ppo"].config), ["--config", str(tmp_path / "c.yaml")], prog="rlhf-fast ppo")


@pytest.mark.parametrize(
    ("verb", "arguments", "words"),
    [
        ("sft", ["--max_steps", "3"], r"unknown field 'max_steps' in the command line; use num_train_epochs\."),
        ("ppo", ["--max_steps", "3"], r"use num_train_epochs or total_episodes\."),
        ("sft", ["--fp16", "true"], r"unknown field 'fp16' .* use dtype \(auto, bfloat16 or float32\)\."),
        ("sft", ["--optim", "sgd"], r"remove it: AdamW is always used\."),
        ("sft", ["--report_to", "wandb"], "metrics.jsonl in output_dir"),
        ("ppo", ["--critic", "none"], "invalid choice: 'none'.*; PPO has a critic; policy_head"),
        ("sft", ["--dtype", "float16"], "invalid choice: 'float16'.*; bfloat16 takes as much memory"),
    ],
)
def test_fields_and_values_that_are_known_and_not_served_are_answered_too(verb, arguments, words):
    with pytest.raises(UsageError, match=words):
        parse_config(load(VERBS[verb].config), [*arguments, "--use_cpu", "true"], prog=f"rlhf-fast {verb}")


@pytest.mark.parametrize(
    ("field", "value", "words"), [("critic", "none", "PPO has a critic"), ("dtype", "bf16", "It is")]
)
def test_values_from_python_and_files_are_answered_too(tmp_path, field, value, words):
    config = load(VERBS["ppo"].config)
    with pytest.raises(UsageError, match=f"{field}='{value}' cannot be used: expected one of .*{words}"):
        config(**{field: value})
    (tmp_path / "c.yaml").write_text(f"{field}: {value}\n")
    with pytest.raises(UsageError, match=words):
        parse_config(config, ["--config", str(tmp_path / "c.yaml")], prog="rlhf-fast ppo")


@pytest.mark.parametrize(
    ("config", "field", "words"),
    [
        (SFTConfig, "lr", "use learning_rate."), (PPOConfig, "kl", "use kl_coef."),
        (RewardConfig, "num_train_epoch", "did you mean num_train_epochs"), (PPORunConfig, "lr", "use learning_rate."),
        (PPOConfig, "lora_r", "use peft_config of PPOTrainer."),
        (PPOConfig, "reward_timeou", "did you mean reward_timeout"),
        (GenerateConfig, "kv", r"help(GenerateConfig) lists the fields."), (EvaluateConfig, "model", "use model_path."),
        (ExportConfig, "quant", "use gguf or dtype"), (DemoConfig, "out", "use output_dir."),
        (SFTConfig, "save", "did you mean save_"), (SFTConfig, "grpo_beta", "help(SFTConfig) lists the fields."),
    ],
)  # fmt: skip
def test_an_unknown_keyword_from_python_is_answered_as_on_the_command_line(config, field, words):
    with pytest.raises(UsageError) as raised:
        config(**{field: 1})
    assert str(raised.value).startswith(f"unknown field {field!r} in {config.__name__}; {words}")


def test_a_config_of_a_script_s_own_goes_by_its_own_fields(tmp_path):
    @dataclass
    class Mine(PPOConfig):
        note: str = "none"

    class Own(SFTConfig):
        def __init__(self, **given):
            self.note = given.pop("note")
            super().__init__(**given)

    common = {"output_dir": str(tmp_path), "use_cpu": True}
    assert Mine(note="a", **common).note == "a" == Own(note="a", **common).note
    with pytest.raises(UsageError, match="unknown field 'lr' in Mine; use learning_rate"):
        Mine(note="a", lr=1, **common)
    with pytest.raises(TypeError, match="'lr'"):
        Own(note="a", lr=1, **common)
    config = SFTConfig(**common)
    assert copy.deepcopy(config).output_dir == pickle.loads(pickle.dumps(config)).output_dir == str(tmp_path)


def test_what_hints_name_exists():
    """A field that is renamed or removed has to be followed here."""
    known = {name for names in FIELDS.values() for name in names}
    assert {field for hint in hints.FIELDS.values() for field in hint.fields} <= known
    assert {field for field, _ in hints.VALUES} <= known
    assert not set(hints.VERBS) & set(VERBS)
    for hint in hints.FIELDS.values():
        assert hint.fields or hint.otherwise
        for names in FIELDS.values():
            assert hint.sentence(names)


TRANSFORMERS = {f.name for f in dataclasses.fields(TrainingArguments) if f.init}


@pytest.mark.parametrize("verb", ["sft", "reward", "ppo"])
def test_every_name_of_transformers_and_trl_is_a_field_or_leads_to_what_serves_it(verb):
    own = set(FIELDS[verb]) | {"sft_model_path", "reward_model_path"}
    own |= {name for name in FIELDS["ppo"] if name not in TRANSFORMERS}  # of another verb: the nearest name may do
    assert {name for name in TRANSFORMERS | set(DEFAULTS) if name not in own} <= set(hints.FIELDS)


def test_no_hint_is_for_a_field_that_its_verb_has_under_that_name():
    """Such a hint could never be read; a name may be a field of one verb and elsewhere stand for another."""
    for name in hints.FIELDS:
        assert not all(name in FIELDS[verb] for verb in ("sft", "reward", "ppo")), name


def test_a_name_in_two_rows_of_a_table_is_refused():
    assert hints.table([("a b", 1), ("c", 2)]) == {"a": 1, "b": 1, "c": 2}
    with pytest.raises(ValueError, match="'b' stands in two rows"):
        hints.table([("a b", 1), ("b", 2)])
