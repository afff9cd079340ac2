"""The model card of an exported model: what the run that trained it was told, and what it measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlhf_fast import __version__
from rlhf_fast.model.load import Source
from rlhf_fast.runtime.checkpoint import FACTS
from rlhf_fast.runtime.resume import FINISHED
from rlhf_fast.runtime.tracking import METRICS_FILE, read_metrics

CARD = "README.md"
_STAGES = {"sft": "supervised fine-tuning", "reward": "training on ranked responses", "ppo": "PPO from human feedback"}
_OPENING = """from transformers import {kind}, AutoTokenizer

model = {kind}.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")"""


@dataclass(frozen=True)
class Facts:
    """What a folder says of the run that wrote it; empty where it says nothing."""

    config: dict[str, Any]
    metrics: list[dict[str, float]]


def read_facts(folder: Path) -> Facts:
    """Of a finished run's output folder, or of a checkpoint."""
    config: dict[str, Any] = {}
    if (folder / FINISHED).is_file():
        config = json.loads((folder / FINISHED).read_text(encoding="utf-8"))
    elif (folder / FACTS).is_file():
        config = json.loads((folder / FACTS).read_text(encoding="utf-8"))["run"]["identity"]
    return Facts(config, read_metrics(folder) if (folder / METRICS_FILE).is_file() else [])


def write_card(
    folder: Path, name: str, source: Source, dtype: torch.dtype, facts: Facts, *, gguf: str | None,
    score_bias: float | None,
) -> None:  # fmt: skip
    text = card(name, source, dtype, facts, gguf=gguf, score_bias=score_bias)
    (folder / CARD).write_text(text, encoding="utf-8")


def card(
    name: str, source: Source, dtype: torch.dtype, facts: Facts, *, gguf: str | None = None,
    score_bias: float | None = None,
) -> str:  # fmt: skip
    """Markdown with the front matter of a hub, and `gguf`, a file beside it. Of paths only the last name is told.

    score_bias: of a reward model, what its scores are above its logits; None for a language model.
    """
    kind = "AutoModelForCausalLM" if score_bias is None else "AutoModelForSequenceClassification"
    verb = str(facts.config.get("stage"))
    stage = _STAGES.get(verb)
    tags = ["rlhf-fast", *([verb] if stage else [])]
    front = ["library_name: transformers", f"tags: {json.dumps(tags)}"]
    if not Path(source.base).exists():
        front.append(f"base_model: {json.dumps(source.base)}")
    how = f"by {stage} " if stage else ""
    weights = str(dtype).removeprefix("torch.")
    merged = "with its adapter merged in" if source.adapter else "with all weights trained"
    parts = [
        "\n".join(["---", *front, "---"]),
        f"# {name}",
        f"`{_told(source.base)}`, {merged}, {how}with rlhf_fast {__version__}. Weights: {weights}.",
        f"```python\n{_OPENING.format(name=name, kind=kind)}\n```",
    ]
    if score_bias is not None:
        parts.append(_reading(score_bias))
    if gguf is not None:
        parts.append(f"For llama.cpp: `{gguf}`, the same weights with tokenizer and chat template in one file.")
    if facts.metrics:
        parts += ["## Metrics", _metrics(facts.metrics)]
    if facts.config:
        rows = [[key, f"`{_told(value)}`"] for key, value in sorted(facts.config.items()) if value is not None]
        parts += ["## Training", _table(["field", "value"], rows)]
    return "\n\n".join(parts) + "\n"


def _reading(score_bias: float) -> str:
    text = (
        "A reward model: the one logit is the score of a prompt with its response, read at the last token that is not "
        "padding. The pad token stands for nothing else, so a response may end with EOS, as in training by rlhf_fast."
    )
    if score_bias:
        text += (
            f" Score = logit {score_bias:+.6g}: the model has no place for that number, which is in `config.json`. "
            "Differences between scores are those between logits."
        )
    return text


def _metrics(rows: list[dict[str, float]]) -> str:
    """Each metric at the first and the last step that has it."""
    names = [name for name in dict.fromkeys(key for row in rows for key in row) if name not in ("step", "seconds")]
    having = {name: [row[name] for row in rows if name in row] for name in names}
    table = [[name, f"{values[0]:.4g}", f"{values[-1]:.4g}"] for name, values in having.items()]
    return f"After {rows[-1]['step']} steps:\n\n" + _table(["metric", "first", "last"], table)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    told = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in told)


def _told(value: Any) -> str:
    if isinstance(value, str):
        return Path(value).name if "/" in value and Path(value).exists() else value
    return json.dumps(value)
