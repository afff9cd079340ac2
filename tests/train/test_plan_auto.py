"""`ppo --auto`: memory settings that fit are chosen and said, and nothing else changes."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from rlhf_fast import FunctionReward, PPORunConfig, UsageError, run_ppo
from rlhf_fast.profiling.rates import Rates
from rlhf_fast.train import plan_run
from rlhf_fast.train.plan import Machine
from tests.tiny_tokenizer import tiny_tokenizer


def even(prompts, responses, **columns):
    return [float(len(response) % 2) for response in responses]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("auto")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=97, max_position_embeddings=64, **sizes)).save_pretrained(
        root
    )
    tiny_tokenizer().save_pretrained(root)
    (root / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"w{i} w{i + 1}"}) + "\n" for i in range(8)))
    return root


def ppo(folder, output, **fields):
    config = PPORunConfig(
        sft_model_path=str(folder), dataset_name=str(folder / "rows.jsonl"), output_dir=str(output), use_cpu=True,
        dtype="float32", response_length=4, per_device_train_batch_size=4, total_episodes=8,
        max_tokens_per_micro_batch=8, num_ppo_epochs=1, disable_tqdm=True, lora_r=2, learning_rate=1e-2, **fields,
    )  # fmt: skip
    run_ppo(config, [(FunctionReward("even", even), 1.0)])
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_the_result_is_that_of_the_run_as_it_was_written(folder, tmp_path, caplog):
    plain = ppo(folder, tmp_path / "plain")
    with caplog.at_level(logging.INFO):
        planned = ppo(folder, tmp_path / "auto", auto=True)
    (said,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("planned: ")]
    assert "max_tokens_per_micro_batch=1024, activation_checkpointing=False, max_rollout_batch=32. It fits: " in said
    for one, other in zip(plain, planned, strict=True):
        for name in ("objective/kl", "objective/scores", "loss/policy_avg", "loss/value_avg"):
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name


def test_a_run_that_does_not_fit_is_refused_before_its_first_step(folder, tmp_path, monkeypatch):
    small = Machine("a small machine", "cpu", 1e6, 5e5, Rates(1e9, 1e9))
    monkeypatch.setattr(plan_run, "this_machine", lambda config: small)
    with pytest.raises(UsageError, match="does not fit a small machine, whatever max_tokens_per_micro_batch"):
        ppo(folder, tmp_path / "out", auto=True)
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_a_plan_that_dies_is_told_and_no_run_begins(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(plan_run.sys, "executable", "/bin/false")
    with pytest.raises(UsageError, match=r"the process that plans ended with status 1.*Start without auto"):
        ppo(folder, tmp_path / "out", auto=True)
    assert not (tmp_path / "out" / "metrics.jsonl").exists()
