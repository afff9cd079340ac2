"""`EvaluateConfig`: every choice of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlhf_fast.runtime.errors import UsageError


@dataclass
class EvaluateConfig:
    """Compare a policy with a baseline on held-out prompts."""

    model_path: str | None = field(default=None, metadata={"help": "The policy: a model or adapter folder."})
    baseline_path: str | None = field(
        default=None,
        metadata={"help": "What to compare with, usually the SFT model. Default: the base of model_path's adapter."},
    )
    reward_model_paths: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Reward adapters or sequence-classification models. The first is the one that the policy was "
            "trained on; the others only judge."
        },
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Held-out prompts: a JSONL, CSV or Parquet file."})
    dataset_format: str | None = field(
        default=None, metadata={"help": "Format of the rows: oasst, pandalm or sgd; default: told from the columns."}
    )
    on_bad_row: Literal["raise", "skip"] = field(
        default="raise", metadata={"help": "A bad row stops the run (raise), or is counted and reported (skip)."}
    )
    chat_template_path: str | None = field(
        default=None, metadata={"help": "A Jinja chat template file, for a tokenizer that has none of its own."}
    )
    max_prompts: int | None = field(default=None, metadata={"help": "Use only the first so many prompts."})
    response_length: int = field(default=128, metadata={"help": "Most tokens of a response."})
    temperature: float = field(default=0.7, metadata={"help": "Sampling temperature; 0 is greedy."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling, the same for both policies."})
    max_rollout_batch: int = field(default=32, metadata={"help": "Sequences decoded together. Memory and speed only."})
    max_tokens_per_micro_batch: int = field(
        default=2048, metadata={"help": "Tokens in one forward. Memory and speed only."}
    )
    dtype: Literal["auto", "bfloat16", "float32"] = field(
        default="auto", metadata={"help": "Compute dtype. auto: bfloat16 where the hardware multiplies it."}
    )
    use_cpu: bool = field(default=False, metadata={"help": "Compute on the CPU even where there is a GPU."})
    output_dir: str = field(
        default="evaluation", metadata={"help": "Where evaluation.json and report.html are written."}
    )

    def __post_init__(self) -> None:
        for name in ("response_length", "max_rollout_batch", "max_tokens_per_micro_batch"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        self._require(self.max_prompts is None or self.max_prompts >= 1, "max_prompts", "at least 1, or nothing")
        self._require(self.temperature >= 0, "temperature", "0 (greedy) or more")

    def _require(self, condition: bool, name: str, expected: str) -> None:
        if not condition:
            raise UsageError(f"{name}={getattr(self, name)!r} cannot be used: expected {expected}.")
