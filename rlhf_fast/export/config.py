"""`ExportConfig`: what is exported, and where to."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.fields import KnownFields, check_kinds


@dataclass
class ExportConfig(KnownFields):
    """An adapter merged into its base, as a plain transformers model and, where asked for, as a GGUF file.

    A reward adapter becomes a sequence classifier.
    """

    model_path: str | None = field(
        default=None,
        metadata={
            "help": "The output or a checkpoint of sft, reward or ppo: an adapter folder or a whole model. An adapter "
            "with a scalar head becomes a model for AutoModelForSequenceClassification."
        },
    )
    output_dir: str = field(default="exported", metadata={"help": "Where the model goes: a folder that is not there."})
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = field(
        default="auto", metadata={"help": "Of the written weights. auto: that of the base's files."}
    )
    head_bias: Literal["exact", "leave_out"] = field(
        default="exact",
        metadata={
            "help": "Of a reward adapter. exact: refuse it where its head adds a number to every score that the "
            "classifier has no place for. leave_out: write it without; logits are then the scores less that number."
        },
    )
    gguf: Literal["none", "f32", "f16", "bf16", "q8_0"] = field(
        default="none",
        metadata={
            "help": "Type of the weights in a GGUF file for llama.cpp (Llama, Mistral, Qwen2, Qwen3); none: no file."
        },
    )

    def __post_init__(self) -> None:
        check_kinds(self, (f.name for f in fields(self)))
        if not self.output_dir:
            raise UsageError("output_dir='' cannot be used: expected the path of a folder that is not there.")
