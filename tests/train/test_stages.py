"""SFT and PPO from files to files, as a user runs them."""

from __future__ import annotations

import json
import logging

import pytest
from peft import LoraConfig

from rlhf_fast import FunctionReward, PPORunConfig, run_ppo
from rlhf_fast.cli import main
from rlhf_fast.data.fitting import TooLong, encode_rows
from rlhf_fast.model.adapter_files import save_adapter
from rlhf_fast.model.load import load_shared
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.tracking import read_metrics
from rlhf_fast.train.sft import SFT
from tests.model_cases import tiny_model
from tests.tiny_tokenizer import tiny_tokenizer


@pytest.fixture
def folder(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    rows = [{"prompt": f"w{i} w{i + 1}", "completion": "w7 w8 w9", "kind": "a"} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def sft(folder, *more: str) -> int:
    words = f"sft --model_name_or_path {folder}/base --dataset_name {folder}/rows.jsonl --output_dir {folder}/sft"
    return main([*words.split(), "--use_cpu", "--disable_tqdm", "True", "--learning_rate", "1e-2", *more])


def test_sft_measures_the_held_out_loss_before_the_first_step_and_after_the_last(folder):
    """The training rows held out too, in one batch: the loss before is that of step 1."""
    heldout = f"--eval_dataset_name {folder}/rows.jsonl --dtype float32"
    rows = len((folder / "rows.jsonl").read_text().splitlines())
    assert sft(folder, "--num_train_epochs", "8", "--per_device_train_batch_size", str(rows), *heldout.split()) == 0
    rows = read_metrics(folder / "sft")
    assert [row["step"] for row in rows if "eval_loss" in row] == [0, len(rows) - 1]
    assert rows[0]["eval_loss"] == pytest.approx(rows[1]["loss"], rel=1e-5)
    assert rows[-1]["eval_loss"] < rows[-1]["loss"] < rows[0]["eval_loss"]


@pytest.mark.parametrize("use_peft", ["True", "False"])
def test_sft_then_ppo_leave_adapters_or_models_that_open_again(folder, use_peft):
    assert sft(folder, "--num_train_epochs", "10", "--use_peft", use_peft) == 0
    losses = [row["loss"] for row in read_metrics(folder / "sft")]
    assert losses[-1] < losses[0] - 0.5

    def columns_arrive(prompts, responses, **columns):
        assert columns["kind"] == ["a"] * len(responses)
        return [float(len(response)) for response in responses]

    config = PPORunConfig(
        sft_model_path=str(folder / "sft"), dataset_name=str(folder / "rows.jsonl"), output_dir=str(folder / "ppo"),
        response_length=5, total_episodes=16, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    output = run_ppo(config, rewards=[(FunctionReward("length", columns_arrive), 1.0)])
    metrics = read_metrics(output)
    assert len(metrics) == 2 and metrics[0]["objective/kl"] == 0
    _, adapter = load_shared(str(output), dtype=load_shared(str(folder / "base"), dtype=_fp32())[0].dtype)
    assert adapter == "sft"


def test_ppo_from_the_command_line_with_a_reward_adapter_and_a_yaml_file(folder):
    assert sft(folder) == 0
    shared = SharedModel(tiny_model())
    shared.add_adapter("reward", LoraConfig(target_modules="all-linear"), head=True)
    save_adapter(shared, "reward", folder / "reward", base=str(folder / "base"))
    (folder / "ppo.yaml").write_text("response_length: 4\nlearning_rate: 1e-4\ntotal_episodes: 800\n")
    words = f"ppo --config {folder}/ppo.yaml --sft_model_path {folder}/sft --reward_model_path {folder}/reward"
    words += f" --dataset_name {folder}/rows.jsonl --output_dir {folder}/ppo --total_episodes 8 --use_cpu"
    assert main([*words.split(), "--disable_tqdm", "True"]) == 0
    (metrics,) = read_metrics(folder / "ppo")
    assert metrics["lr"] <= 1e-4 and metrics["rollout/response_length"] <= 4


def test_a_mistyped_field_and_a_missing_model_are_named(folder, capsys):
    assert sft(folder, "--learning_rat", "1") == 2
    assert "learning_rate" in capsys.readouterr().err
    assert main(["sft", "--model_name_or_path", "./nowhere", "--dataset_name", "x.jsonl", "--use_cpu"]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(("rows", "size", "sizes"), [(20, 16, [16, 4]), (5, 4, [4, 1])])
def test_sft_learns_every_row_of_a_pass_once(folder, monkeypatch, caplog, rows, size, sizes):
    lines = (folder / "rows.jsonl").read_text().splitlines(keepends=True)[:rows]
    (folder / "rows.jsonl").write_text("".join(lines))
    batches, loss = [], SFT.loss
    monkeypatch.setattr(SFT, "loss", lambda run, rows: (batches.append(rows), loss(run, rows))[1])
    with caplog.at_level(logging.INFO, "rlhf_fast.notices"):
        assert sft(folder, "--per_device_train_batch_size", str(size)) == 0
    assert [len(batch) for batch in batches] == sizes and len(read_metrics(folder / "sft")) == len(sizes)
    assert len({tuple(row.input_ids) for batch in batches for row in batch}) == rows
    assert f"SFT: {rows} rows of {6 * rows} tokens, {4 * rows} of them learnt; {rows} rows are 2 steps" in caplog.text


@pytest.mark.parametrize(("long", "bad"), [(2, 0), (1, 3)])
def test_rows_that_are_left_out_are_counted_those_that_are_too_long_apart(folder, caplog, long, bad):
    with (folder / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "w1", "completion": "w2 " * 30}) + "\n" if long else "")
        file.write((json.dumps({"prompt": "w3", "completion": "w4 " * 40}) + "\n") * (long - 1))
        file.write("{}\n" * bad)
    with caplog.at_level(logging.INFO, "rlhf_fast.notices"):
        assert sft(folder, "--on_bad_row", "skip", "--max_length", "20") == 0
    assert f"SFT: 20 rows of 120 tokens, 80 of them learnt, {long + bad} more left out; 20 rows are" in caplog.text
    assert f"skipped {long} of {20 + long} rows of {folder}/rows.jsonl, {long} of them for their length" in caplog.text


def test_rows_that_are_skipped_for_another_reason_do_not_count_as_too_long(caplog):
    errors = {"a": TooLong("9 tokens"), "b": UsageError("no reply"), "c": TooLong("8 tokens")}

    def encode(row: str) -> str:
        if row in errors:
            raise errors[row]
        return row

    kept = encode_rows([*"abcd"], encode, noun="row", source="x.jsonl", on_bad_row="skip")
    assert list(kept) == [("d", "d")]
    assert "skipped 3 of 4 rows of x.jsonl, 2 of them for their length. The first: row 1: 9 tokens" in caplog.text


def _fp32():
    import torch

    return torch.float32
