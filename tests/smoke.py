"""Every stage once, from files to files, on a tiny model: what has to work with each version of each library that is
allowed, and on each device.

    python -m tests.smoke          # on a GPU where there is one
    python -m tests.smoke --cpu

Ends with status 0, or with the error of the stage that failed.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from rlhf_fast.cli import main as command
from rlhf_fast.runtime.tracking import read_metrics
from rlhf_fast.trainer import PPOConfig, PPOTrainer
from tests.model_cases import tiny_model, tokens
from tests.tiny_tokenizer import tiny_tokenizer

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "huggingface-hub")
CPU = ["--use_cpu"] if "--cpu" in sys.argv[1:] else []
BATCH = "--per_device_train_batch_size 4 --disable_tqdm True"


def main() -> None:
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        stages()
        trainer()
        os.chdir("/")  # some systems do not remove the current folder
    print("every stage ran")


def stages() -> None:
    """What the command line does."""
    tiny_model().save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")
    rows = [{"prompt": f"w{i} w{i + 1}", "completion": "w7 w8"} for i in range(16)]
    pairs = [{"prompt": f"w{i} w{i + 2}", "chosen": "w7 w8", "rejected": "w9"} for i in range(16)]
    for name, lines in (("rows.jsonl", rows), ("pairs.jsonl", pairs)):
        Path(name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    sft = f"sft --model_name_or_path base --dataset_name rows.jsonl {BATCH}"
    run(f"{sft} --output_dir sft --gradient_checkpointing True")
    run(f"{sft} --output_dir full --use_peft False")
    reward = f"reward --dataset_name pairs.jsonl --response_length 4 {BATCH}"
    run(f"{reward} --model_name_or_path sft --output_dir reward")
    run(f"{reward} --model_name_or_path full --output_dir full_reward")
    ppo = f"ppo --dataset_name rows.jsonl --response_length 4 {BATCH}"
    ours = f"{ppo} --sft_model_path sft --reward_model_path reward --total_episodes 8"
    for critic in ("adapter", "policy_head", "reference_mlp"):
        run(f"{ours} --output_dir {critic} --critic {critic}")
        assert len(read_metrics(critic)) == 2
    run(f"{ours} --output_dir adapter --critic adapter --total_episodes 12 --resume adapter/checkpoint-2")
    assert len(read_metrics("adapter")) == 3
    full = f"{ppo} --sft_model_path full --reward_model_path full_reward --total_episodes 4 --use_peft False"
    run(f"{full} --output_dir all --activation_checkpointing True")
    judged = "--reward_model_paths reward --dataset_name rows.jsonl --response_length 4 --max_prompts 4"
    run(f"evaluate --model_path adapter --baseline_path sft {judged} --output_dir evaluation")
    run("generate --model_path adapter --prompts w3 --response_length 4 --output_file responses.jsonl")
    run("export --model_path adapter --output_dir merged")
    opened = AutoModelForCausalLM.from_pretrained("./merged")
    assert opened(torch.tensor([[3, 4]])).logits.isfinite().all()


def run(words: str) -> None:
    status = command([*words.split(), *([] if words.startswith("export") else CPU)])
    if status:
        sys.exit(f"status {status} of rlhf-fast {words}")


def trainer() -> None:
    """What a script of TRL's kind does."""
    config = PPOConfig(
        output_dir="trainer", per_device_train_batch_size=4, total_episodes=8, response_length=4,
        report_to="none", num_sample_generations=0, use_cpu=bool(CPU), disable_tqdm=True,
    )  # fmt: skip
    given = PPOTrainer(
        config, processing_class=tiny_tokenizer(), model=tiny_model(), ref_model=None, value_model=None,
        reward_model=lambda prompts, responses, **columns: [float(len(text)) for text in responses],
        train_dataset=[{"input_ids": ids} for ids in tokens(3, 5, 4, 2)],
    )  # fmt: skip
    given.train()
    given.save_model(config.output_dir)
    assert Path("trainer/model.safetensors").is_file()


if __name__ == "__main__":
    main()
