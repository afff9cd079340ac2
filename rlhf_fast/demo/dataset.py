"""The bundled customer-service rows as the files that the stages read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from rlhf_fast.runtime.files import write_text

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
