"""Good input for every stage, so that a test can spoil one thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig

from rlhf_fast import (
    EvaluateConfig,
    FunctionReward,
    GenerateConfig,
    PPORunConfig,
    RewardConfig,
    SFTConfig,
    run_evaluate,
    run_generate,
    run_ppo,
    run_reward,
    run_sft,
)
from rlhf_fast.model.adapter_files import save_adapter
from rlhf_fast.model.shared import SharedModel
from tests.model_cases import tiny_model
from tests.preferences.cases import write_model, write_rows, write_sft_adapter
from tests.rewards.cases import encoder, encoder_tokenizer
from tests.tiny_tokenizer import tiny_tokenizer

STAGES = ("sft", "reward", "ppo", "evaluate", "generate")
MODEL = {
    "sft": "model_name_or_path", "reward": "model_name_or_path", "ppo": "sft_model_path", "evaluate": "model_path",
    "generate": "model_path",
}  # fmt: skip


def write_good(root: Path) -> Path:
    """A model, an SFT adapter, reward adapters on this and on another base, a classifier, and data of all kinds."""
    for name in ("base", "other"):
        write_model(root / name, tiny_tokenizer())
        shared = SharedModel(tiny_model())
        shared.add_adapter("reward", LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"), head=True)
        shared.heads["reward"].weight.data.normal_()
        save_adapter(shared, "reward", root / f"{name}_reward", base=str(root / name))
    write_sft_adapter(root / "sft", str(root / "base"))
    encoder().save_pretrained(root / "classifier")
    encoder_tokenizer().save_pretrained(root / "classifier")
    row = {"prompt": "w1 w2", "completion": "w3", "chosen": "w4", "rejected": "w5"}
    files: dict[str, list[dict]] = {
        "rows": [row | {"prompt": f"w{i}"} for i in range(6)],
        "empty_prompt": [row, row | {"prompt": " "}],
        "long_prompt": [row, row | {"prompt": "w1 " * 65}],
        "chat": [row | {"prompt": [{"role": "user", "content": word}]} for word in ("w1", "w2")],
        "empty_file": [],
        "no_columns": [{"text_of_the_prompt": "w1"}],
    }
    for name, rows in files.items():
        write_rows(root / f"{name}.jsonl", rows)
    return root


def run(stage: str, good: Path, output: Path, **options: Any) -> Any:
    """A run of `stage` with good input but for `options`; names of files in `good` become paths."""
    training = {"output_dir": str(output), "disable_tqdm": True}
    config, function, own = {
        "sft": (SFTConfig, run_sft, training),
        "reward": (RewardConfig, run_reward, training | {"response_length": 4}),
        "ppo": (PPORunConfig, run_ppo, training | {"response_length": 4}),
        "evaluate": (EvaluateConfig, run_evaluate, {"reward_model_paths": ["base_reward"], "output_dir": str(output)}),
        "generate": (GenerateConfig, run_generate, {"output_file": str(output / "out.jsonl")}),
    }[stage]  # fmt: skip
    if stage in ("evaluate", "generate"):
        own = own | {"response_length": 4}
    model = {MODEL[stage]: "base" if stage in ("sft", "reward") else "sft"}
    rewards = options.pop("rewards", [(FunctionReward("f", lambda p, r, **c: [0.0] * len(r)), 1.0)])

    def full(value: Any) -> Any:
        if isinstance(value, list):
            return [full(part) for part in value]
        return str(good / value) if isinstance(value, str) and (good / value).exists() else value

    given = {"dataset_name": "rows.jsonl", "use_cpu": True} | model | own | options
    made = config(**{name: full(value) for name, value in given.items()})
    return function(made, rewards) if stage == "ppo" else function(made)
