"""`ExportConfig`: what is exported, and where to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlhf_fast.runtime.config import Check, Config, option


@dataclass
class ExportConfig(Config):
    """An adapter merged into its base, as a plain transformers model and, where asked for, as a GGUF file.

    A reward adapter becomes a sequence classifier.
    """

    model_path: str | None = option(
        None,
        "The output or a checkpoint of sft, reward or ppo: an adapter folder or a whole model. An adapter with a "
        "scalar head becomes a model for AutoModelForSequenceClassification.",
    )
    output_dir: str = option(
        "exported", "Where the model goes: a folder that is not there.",
        check=Check(bool, "the path of a folder that is not there"),
    )  # fmt: skip
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = option(
        "auto", "Of the written weights. auto: that of the base's files."
    )
    head_bias: Literal["exact", "leave_out"] = option(
        "exact",
        "Of a reward adapter. exact: refuse it where its head adds a number to every score that the classifier "
        "has no place for. leave_out: write it without; logits are then the scores less that number.",
    )
    gguf: Literal["none", "f32", "f16", "bf16", "q8_0"] = option(
        "none", "Type of the weights in a GGUF file for llama.cpp (Llama, Mistral, Qwen2, Qwen3); none: no file."
    )
