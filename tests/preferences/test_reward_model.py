"""A run from its config: what it writes, what a loaded copy scores, and what it refuses before training."""

from __future__ import annotations

import json

import pytest
import torch

from rlhf_fast.model.adapter_files import load_adapter
from rlhf_fast.model.load import load_shared, load_tokenizer, resolve_source
from rlhf_fast.model.roles import Policy, adapter_critic, sequence_scores
from rlhf_fast.preferences.config import RewardConfig
from rlhf_fast.preferences.reward_model import run_reward
from rlhf_fast.rollout.engine import generate
from rlhf_fast.rollout.sampling import Sampling
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.parse import config_parser
from rlhf_fast.runtime.tracking import read_metrics
from tests.preferences.cases import config, rows, write_model, write_rows, write_sft_adapter
from tests.tiny_tokenizer import tiny_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("base"), tiny_tokenizer())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("data") / "comparisons.jsonl", rows(40))


@pytest.fixture(scope="module")
def trained(base, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    sft = write_sft_adapter(folder / "sft", base)
    options = config(
        model_name_or_path=sft, dataset_name=data, output_dir=str(folder / "reward"), lora_r=16, lora_alpha=32,
        eval_fraction=0.2,
    )  # fmt: skip
    return options, run_reward(options)


def loaded(folder):
    shared, name = load_shared(str(folder), dtype=torch.float32, adapter="reward")
    assert name == "reward"
    return adapter_critic(shared, name)


def test_a_run_learns_and_says_so(trained):
    _, result = trained
    assert result.evaluation.accuracy.value == 1.0
    assert result.evaluation.accuracy.count == 24  # 8 of 40 prompts, 3 pairs each
    assert len(result.history) == 24  # 32 comparisons, 8 a step, 6 epochs


def test_the_folder_holds_the_numbers_the_metrics_and_the_tokenizer(trained, base):
    _, result = trained
    facts = json.loads((result.output / "reward_model.json").read_text())
    assert facts["comparisons"] == {"train": 32, "heldout": 8, "skipped": 0}
    assert facts["evaluation"]["accuracy"]["value"] == 1.0
    assert facts["evaluation"]["accuracy"]["low"] == pytest.approx(24 / (24 + 3.841459), abs=1e-4)  # n / (n + z^2)
    assert facts["normalisation"]["samples"] == 16
    assert len(read_metrics(result.output)) == facts["steps"] == 24
    assert load_tokenizer(str(result.output)).chat_template is not None
    assert resolve_source(str(result.output)).base == base


def test_a_loaded_reward_model_prefers_the_same_and_peft_can_open_it(trained, base):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    _, result = trained
    critic = loaded(result.output)
    tokenizer = load_tokenizer(str(result.output))
    good, bad = (tokenizer(f"w20 w21 w33 {word}")["input_ids"] + [tokenizer.eos_token_id] for word in ("w7", "w8"))
    scores = sequence_scores(critic, [good, bad], 1000)
    assert scores[0] > scores[1] + 1

    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), result.output)
    for sequence, score in zip((good, bad), scores, strict=True):
        hidden = peft.base_model.model.model(torch.tensor([sequence])).last_hidden_state[0, -1]
        assert float(critic.head(hidden)) == pytest.approx(float(score), abs=1e-3)


def test_normalised_scores_of_the_start_model_have_mean_0_and_std_1(trained):
    options, result = trained
    critic = loaded(result.output)
    load_adapter(critic.model, options.model_name_or_path, "sft")
    tokenizer = load_tokenizer(options.model_name_or_path)
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows(40)] * 5
    sampling = Sampling(options.response_length, (tokenizer.eos_token_id,), temperature=options.temperature)
    responses = generate(Policy(critic.model, "sft"), prompts, sampling, seeds=list(range(10_000, 10_200)))
    scores = sequence_scores(critic, [p + r.tokens for p, r in zip(prompts, responses, strict=True)], 2000)
    assert abs(float(scores.mean())) < 0.7  # 16 samples made the scale: a standard error of .25
    assert 0.6 < float(scores.std()) < 1.7
    assert not 0.9 < result.normalisation.std < 1.1  # there was something to normalise


def test_normalising_changes_the_scale_and_nothing_else(base, data, tmp_path):
    both = []
    for normalise in (False, True):
        options = config(
            model_name_or_path=base, dataset_name=data, output_dir=str(tmp_path / str(normalise)), normalise=normalise,
            num_train_epochs=1,
        )  # fmt: skip
        both.append(run_reward(options))
    plain, scaled = both
    assert plain.normalisation is None and plain.evaluation == scaled.evaluation
    sequences = [[20, 30, 40, 2], [21, 31, 2], [50, 60, 70, 80, 2]]
    scores = sequence_scores(loaded(plain.output), sequences, 100)
    expected = (scores - scaled.normalisation.mean) / scaled.normalisation.std
    torch.testing.assert_close(sequence_scores(loaded(scaled.output), sequences, 100), expected, rtol=1e-4, atol=1e-4)


def test_eval_dataset_is_used_whole_and_shared_prompts_are_reported(base, data, tmp_path, caplog):
    other = write_rows(
        tmp_path / "other.jsonl", [*rows(6, seed=0)[:5], {"prompt": "w90", "chosen": "w7", "rejected": "w8"}]
    )
    options = config(
        model_name_or_path=base, dataset_name=data, eval_dataset_name=other, output_dir=str(tmp_path / "out"),
        num_train_epochs=1, normalise=False,
    )  # fmt: skip
    result = run_reward(options)
    assert result.evaluation.accuracy.count == 5 * 3 + 1
    assert len(result.history) == 5  # all 40 comparisons
    assert "5 prompts of eval_dataset_name are in dataset_name too" in caplog.text


def test_without_held_out_prompts_there_is_no_evaluation(base, data, tmp_path):
    options = config(
        model_name_or_path=base, dataset_name=data, output_dir=str(tmp_path), eval_fraction=0, num_train_epochs=0.2,
        normalise=False, gradient_checkpointing=True,
    )  # fmt: skip
    result = run_reward(options)
    assert result.evaluation is None and len(result.history) == 1
    assert json.loads((tmp_path / "reward_model.json").read_text())["evaluation"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_peft": False}, "use_peft=False cannot be used"),
        ({"eval_fraction": 1.0}, "eval_fraction=1.0 cannot be used"),
        ({"normalise_samples": 1}, "normalise_samples=1 cannot be used"),
        ({"center_rewards_coefficient": -0.1}, "center_rewards_coefficient=-0.1 cannot be used"),
        ({"temperature": -1.0}, "temperature=-1.0 cannot be used"),
        ({"logging_steps": 7}, "unknown field 'logging_steps' in RewardConfig; remove it"),
    ],
)
def test_choices_without_meaning_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        RewardConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset_name": None}, "needs model_name_or_path"),
        ({"max_length": 6}, r"comparison \d+ of .*comparisons.jsonl: a prompt with a response has \d+ tokens"),
        ({"response_length": 63}, "none leaves room for response_length=63"),
    ],
)
def test_what_the_data_gets_wrong_is_said_before_training(base, data, tmp_path, options, message):
    given = {"model_name_or_path": base, "dataset_name": data, "output_dir": str(tmp_path / "out")} | options
    with pytest.raises(UsageError, match=message):
        run_reward(config(**given))
    assert not (tmp_path / "out").exists()


def test_a_sequence_longer_than_the_context_is_refused(base, tmp_path):
    long = {"prompt": "w20", "chosen": "w7 " * 70, "rejected": "w8"}
    name = write_rows(tmp_path / "long.jsonl", [long, {"prompt": "w21", "chosen": "w7", "rejected": "w8"}])
    with pytest.raises(UsageError, match="has 72 tokens and the model's context is 64"):
        run_reward(config(model_name_or_path=base, dataset_name=name, output_dir=str(tmp_path / "out")))


def test_held_out_comparisons_that_all_tie_are_refused(base, data, tmp_path):
    ties = write_rows(tmp_path / "ties.jsonl", [{"prompt": "w20", "responses": ["w7", "w8"], "ranks": [1, 1]}])
    with pytest.raises(UsageError, match="all 1 held-out comparisons are ties"):
        run_reward(
            config(model_name_or_path=base, dataset_name=data, eval_dataset_name=ties, output_dir=str(tmp_path / "o"))
        )


def test_every_field_of_the_config_has_help():
    shown = [a for a in config_parser(RewardConfig, "reward")._actions if a.dest in RewardConfig.__annotations__]
    assert all(action.help for action in shown)
    assert {a.dest for a in shown} >= {"normalise", "eval_fraction", "center_rewards_coefficient"}
