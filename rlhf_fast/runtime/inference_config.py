"""`InferenceConfig`: what the configs of tools that only sample and score share."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.fields import KnownFields, check_kinds
from rlhf_fast.runtime.tracking import show_notices


@dataclass
class InferenceConfig(KnownFields):
    """Prompts, sampling, and how to compute."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Prompts: a JSONL, CSV or Parquet file, or a hub name."}
    )
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
    stop: list[str] = field(
        default_factory=list,
        metadata={"help": "Strings that end a response, which keeps the token that completes one; as well as EOS."},
    )
    temperature: float = field(default=0.7, metadata={"help": "Sampling temperature; 0 is greedy."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling; prompt i has a seed of its own."})
    max_rollout_batch: int = field(default=32, metadata={"help": "Sequences decoded together. Memory and speed only."})
    max_kv_cache_gb: float | None = field(
        default=None,
        metadata={"help": "Most GB of keys and values; more sequences wait. Default: half of the free memory."},
    )
    max_tokens_per_micro_batch: int = field(
        default=2048, metadata={"help": "Tokens in one forward. Memory and speed only."}
    )
    dtype: Literal["auto", "bfloat16", "float32"] = field(
        default="auto", metadata={"help": "Compute dtype. auto: bfloat16 where the hardware multiplies it."}
    )
    use_cpu: bool = field(default=False, metadata={"help": "Compute on the CPU even where there is a GPU."})

    def __post_init__(self) -> None:
        show_notices()
        check_kinds(self, (f.name for f in fields(self)))
        for name in ("response_length", "max_rollout_batch", "max_tokens_per_micro_batch"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.max_prompts is None or self.max_prompts >= 1, "max_prompts", "at least 1, or nothing")
        self.require(self.temperature >= 0, "temperature", "0 (greedy) or more")
        self.require(all(self.stop), "stop", "strings of one character or more")
        cache = self.max_kv_cache_gb
        self.require(cache is None or cache > 0, "max_kv_cache_gb", "a number above 0, or nothing")

    def require(self, condition: bool, name: str, expected: str) -> None:
        """Raise `UsageError` naming the field, its value and what was expected, unless `condition`."""
        if not condition:
            raise UsageError(f"{name}={getattr(self, name)!r} cannot be used: expected {expected}.")
