"""`SFTConfig`: every choice of supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from rlhf_fast.runtime.config import StageConfig


@dataclass
class SFTConfig(StageConfig):
    """Supervised fine-tuning on demonstrations; the loss is on responses only."""

    stage: ClassVar[str] = "sft"

    output_dir: str | None = field(default="sft", metadata={"help": "Where the model or adapter is saved."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "The base model: a folder or a hub name."})
    eval_dataset_name: str | None = field(
        default=None,
        metadata={"help": "Held-out demonstrations; their loss is in the metrics of step 0 and of the last step."},
    )
    learning_rate: float = field(default=2e-4, metadata={"help": "Peak learning rate of AdamW."})
    num_train_epochs: float = field(
        default=1.0, metadata={"help": "Passes over the demonstrations; steps are rounded up."}
    )
    per_device_train_batch_size: int = field(
        default=16,
        metadata={"help": "Demonstrations in an optimiser step; the last of a pass has those that are left."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lora_r", "lora_alpha", "lora_target_modules", "lora_layers"):
            default = type(self).__dataclass_fields__[name].default
            self.require(self.use_peft or getattr(self, name) == default, name, "its default, as use_peft is false")
