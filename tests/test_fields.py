"""No dead options: every field of every config that is accepted changes what its stage does.

A stage runs once with a field as it is and once with another value; what is compared is everything that it leaves: its
metrics, its weights or texts, how often the network ran, or the reason for which it refuses.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from rlhf_fast import (
    EvaluateConfig,
    FunctionReward,
    GenerateConfig,
    PPORunConfig,
    RewardConfig,
    SFTConfig,
    UsageError,
    run_evaluate,
    run_generate,
    run_ppo,
    run_reward,
    run_sft,
)  # fmt: skip
from rlhf_fast.model.lora import LoRALinear
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.runtime.config import field_names
from rlhf_fast.runtime.device import choose_device
from tests.field_values import ELSEWHERE, EVALUATE, GENERATE, PPO, REWARD, SFT, Change
from tests.tiny_tokenizer import CHATML, tiny_tokenizer

STAGES = {SFTConfig: SFT, RewardConfig: REWARD, PPORunConfig: PPO, EvaluateConfig: EVALUATE, GenerateConfig: GENERATE}
IDS = {cls: cls.__name__ for cls in STAGES}
CASES = [
    pytest.param(cls, name, change, id=f"{IDS[cls]}-{name}")
    for cls, table in STAGES.items()
    for name, change in table.items()
]


def chat(words: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": words}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("fields")
    for seed, name in enumerate(("base", "other")):
        torch.manual_seed(seed)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = LlamaConfig(vocab_size=97, max_position_embeddings=64, initializer_range=0.3, **sizes)
        model = AutoModelForCausalLM.from_config(config)
        model.lm_head.weight.data[2] *= 4  # EOS often enough that some responses end with it
        model.save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    for name, first in (("rows", 0), ("more", 20)):
        rows = [
            {"prompt": chat(f"w{i} w{i + 1}"), "completion": f"w{i + 3} w9", "i": i} for i in range(first, first + 8)
        ]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        rows = [{"prompt": row["prompt"], "chosen": "w7 w8", "rejected": f"w{10 + i} w9"} for i, row in enumerate(rows)]
        (root / f"{name}_ranked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "template.jinja").write_text("system " + CHATML)
    common = {"use_cpu": True, "disable_tqdm": True, "dtype": "float32", "lora_r": 2, "learning_rate": 1e-2}
    for name, seed in (("reward", 0), ("reward2", 1)):
        run_reward(RewardConfig(
            model_name_or_path=str(root / "base"), dataset_name=str(root / "rows_ranked.jsonl"), seed=seed,
            output_dir=str(root / name), normalise=False, eval_fraction=0.0, per_device_train_batch_size=4, **common,
        ))  # fmt: skip
    return root


def options(cls: type, folder: Path, output: Path) -> dict[str, Any]:
    """What a small run of each stage needs; paths are relative to the folder of models and data."""
    sampling = {"response_length": 4, "use_cpu": True, "dtype": "float32"}
    training = {
        "use_cpu": True, "disable_tqdm": True, "dtype": "float32", "learning_rate": 1e-2, "lora_r": 2,
        "lora_alpha": 4.0, "per_device_train_batch_size": 4, "lr_scheduler_type": "cosine", "output_dir": str(output),
        "max_tokens_per_micro_batch": 30,
    }  # fmt: skip
    return {
        SFTConfig: training | {"model_name_or_path": "base", "dataset_name": "rows.jsonl"},
        RewardConfig: training | {
            "model_name_or_path": "base", "dataset_name": "rows_ranked.jsonl", "num_train_epochs": 1.0,
            "normalise_samples": 4, "response_length": 4, "eval_fraction": 0.25,
        },
        PPORunConfig: training | {
            "sft_model_path": "base", "dataset_name": "rows.jsonl", "response_length": 4, "num_ppo_epochs": 2,
            "per_device_train_batch_size": 4, "total_episodes": 8, "temperature": 1.0, "cliprange_value": 0.02,
        },
        EvaluateConfig: sampling | {
            "model_path": "base", "baseline_path": "other", "reward_model_paths": ["reward"], "output_dir": str(output),
            "dataset_name": "rows.jsonl",
        },
        GenerateConfig: sampling | {
            "model_path": "base", "dataset_name": "rows.jsonl", "output_file": str(output / "responses.jsonl"),
        },
    }[cls]  # fmt: skip


def with_paths(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    def full(value: Any) -> Any:
        return str(folder / value) if isinstance(value, str) and (folder / value).exists() else value

    return {k: [full(v) for v in value] if isinstance(value, list) else full(value) for k, value in values.items()}


def outcome(cls: type, folder: Path, output: Path, change: dict[str, Any], monkeypatch) -> Any:
    """Everything that a run leaves but the time that it took and where it put it."""
    counts = {"forwards": 0, "layers": 0}
    for owner, name, key in ((SharedModel, "_forward", "forwards"), (LoRALinear, "forward", "layers")):
        original = getattr(owner, name)

        def counted(*args, original=original, key=key):
            counts[key] += 1
            return original(*args)

        monkeypatch.setattr(owner, name, counted)
    runs = {
        SFTConfig: run_sft, RewardConfig: run_reward, EvaluateConfig: run_evaluate, GenerateConfig: run_generate,
        PPORunConfig: lambda config: run_ppo(config, [(FunctionReward("even", even), 1.0)]),
    }  # fmt: skip
    try:
        runs[cls](cls(**with_paths(options(cls, folder, output) | change, folder)))
    except UsageError as error:
        return str(error)
    finally:
        monkeypatch.undo()
    return counts, {str(path.relative_to(output)): left(path) for path in sorted(output.rglob("*")) if left(path)}


def left(path: Path) -> Any:
    if path.name == "metrics.jsonl":
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]
    if path.name == "profile.json":
        return sorted(json.loads(path.read_text())["phases"])
    if path.name == "memory.json":
        return sorted(json.loads(path.read_text())["measured"]["bytes"])
    if path.suffix == ".safetensors" or path.name in ("evaluation.json", "responses.jsonl", "rollouts.jsonl"):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return None


def even(prompts, responses, **columns):
    return [float(sum(int(word[1:]) % 2 == 0 for word in r.split() if word[1:].isdigit())) for r in responses]


_DEFAULTS: dict[str, Any] = {}


@pytest.mark.parametrize(("cls", "name", "change"), CASES)
def test_a_field_changes_what_its_stage_does(folder, tmp_path, monkeypatch, cls, name, change: Change):
    key = f"{IDS[cls]} {change.beside}"
    if key not in _DEFAULTS:
        _DEFAULTS[key] = outcome(cls, folder, tmp_path / "before", change.beside, monkeypatch)
        assert not isinstance(_DEFAULTS[key], str), _DEFAULTS[key]
    changed = outcome(cls, folder, tmp_path / "after", change.beside | {name: change.to}, monkeypatch)
    assert changed != _DEFAULTS[key]


@pytest.mark.parametrize("cls", [SFTConfig, PPORunConfig, RewardConfig, GenerateConfig])
def test_the_same_run_leaves_the_same(folder, tmp_path, monkeypatch, cls):
    one, two = (outcome(cls, folder, tmp_path / name, {}, monkeypatch) for name in ("one", "two"))
    assert one == two and not isinstance(one, str)


@pytest.mark.parametrize("cls", STAGES, ids=IDS.get)
def test_every_field_is_tried(cls):
    assert set(STAGES[cls]) | ELSEWHERE >= set(field_names(cls))
    assert set(STAGES[cls]) <= set(field_names(cls))


def test_use_cpu_keeps_a_run_off_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (choose_device(True).type, choose_device(False).type) == ("cpu", "cuda")


@pytest.mark.parametrize("cls", [SFTConfig, RewardConfig, PPORunConfig], ids=IDS.get)
def test_disable_tqdm_silences_the_progress(folder, tmp_path, monkeypatch, capsys, cls):
    shown = []
    for quiet in (True, False):
        outcome(cls, folder, tmp_path / str(quiet), {"disable_tqdm": quiet}, monkeypatch)
        printed = capsys.readouterr()
        shown.append("left" in printed.err)
        assert "left" not in printed.out
    assert shown == [False, True]


@pytest.mark.parametrize("cls", STAGES, ids=IDS.get)
def test_on_bad_row_stops_at_a_row_that_is_too_long_or_leaves_it_out(folder, tmp_path, monkeypatch, cls):
    ranked = cls is RewardConfig
    long = {"prompt": chat("w5 " * 70), "completion": "w6", "chosen": "w6", "rejected": "w7", "i": 0}
    good = (folder / ("rows_ranked.jsonl" if ranked else "rows.jsonl")).read_text()
    data = tmp_path / "long.jsonl"
    data.write_text(good + json.dumps(long if not ranked else {k: long[k] for k in ("prompt", "chosen", "rejected")}))
    change = {"dataset_name": str(data)} | ({"max_length": 60} if ranked else {})
    assert "tokens" in outcome(cls, folder, tmp_path / "raise", change, monkeypatch)
    assert not isinstance(outcome(cls, folder, tmp_path / "s", change | {"on_bad_row": "skip"}, monkeypatch), str)
