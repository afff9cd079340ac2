"""A whole script as TRL's users write it, from its command line to the saved policy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_fast.runtime.tracking import read_metrics
from tests import forked
from tests.tiny_tokenizer import tiny_tokenizer
from tests.trainer.cases import classifier, policy

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "tests" / "trainer" / "script.py")
pytest.importorskip("datasets", reason="the script reads its data with the package datasets, of the extra data")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "left", "processes"),
    [(["--use_peft", "--lora_r", "4"], "adapter_model.safetensors", 1), ([], "model.safetensors", 1),
     ([], "model.safetensors", 2)],
)  # fmt: skip
def test_a_script_runs_from_its_command_line(tmp_path, options, left, processes):
    for name, model in (("sft", policy()), ("reward", classifier())):
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    rows = [{"prompt": f"w{i} w{i + 1} w{i + 2}"} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = {
        "dataset_name": tmp_path / "rows.jsonl", "output_dir": tmp_path / "out", "model_name_or_path": tmp_path / "sft",
        "sft_model_path": tmp_path / "sft", "reward_model_path": tmp_path / "reward", "learning_rate": 1e-3,
        "per_device_train_batch_size": 4 // processes, "gradient_accumulation_steps": 2, "total_episodes": 16,
        "response_length": 5,
        "missing_eos_penalty": 1.0, "stop_token": "eos", "num_ppo_epochs": 2, "num_mini_batches": 1,
        "local_rollout_forward_batch_size": 4, "use_cpu": True, "report_to": "none", "bf16": False,
    }  # fmt: skip
    given = [word for name, value in arguments.items() for word in (f"--{name}", str(value))] + options
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "HF_HOME": str(tmp_path / "hf")}
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *torchrun, SCRIPT, *given]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    else:
        done = forked.python(SCRIPT, *given, environment=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / left).is_file() and len(read_metrics(tmp_path / "out")) == 2
    assert done.stdout.count("model response") == done.stdout.count("score") > 0
