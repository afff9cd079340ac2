"""`SFTConfig`: every choice of supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_fast.runtime.config import StageConfig, above, at_least, default_of, option


@dataclass
class SFTConfig(StageConfig):
    """Supervised fine-tuning on demonstrations; the loss is on responses only."""

    stage: ClassVar[str] = "sft"

    output_dir: str = option("sft", "Where the model or adapter is saved.", resume="free")
    model_name_or_path: str | None = option(None, "The base model: a folder or a hub name.")
    eval_dataset_name: str | None = option(
        None, "Held-out demonstrations; their loss is in the metrics of step 0 and of the last step."
    )
    learning_rate: float = option(2e-4, "Peak learning rate of AdamW.", check=above(0))
    num_train_epochs: float = option(
        1.0, "Passes over the demonstrations; steps are rounded up.", check=above(0), resume="length"
    )
    per_device_train_batch_size: int = option(
        16, "Demonstrations in an optimiser step; the last of a pass has those that are left.",
        check=at_least(1), resume="division",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lora_r", "lora_alpha", "lora_target_modules", "lora_layers"):
            unset = getattr(self, name) == default_of(type(self), name)
            self.require(self.use_peft or unset, name, "its default, as use_peft is false")
