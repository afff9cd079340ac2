"""`RewardConfig`: every choice of training a reward model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from rlhf_fast.runtime.config import StageConfig


@dataclass
class RewardConfig(StageConfig):
    """A reward model on comparisons: a LoRA adapter with a scalar head."""

    stage: ClassVar[str] = "reward"

    output_dir: str | None = field(
        default="reward", metadata={"help": "Where the adapter, its head and its numbers go."}
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "What it starts from: an SFT output (full model or adapter folder), or a base model."},
    )
    learning_rate: float = field(default=2e-4, metadata={"help": "Peak learning rate of AdamW."})
    num_train_epochs: float = field(
        default=2.0, metadata={"help": "Passes over the comparisons; steps are rounded up."}
    )
    per_device_train_batch_size: int = field(
        default=16, metadata={"help": "Comparisons in an optimiser step; the last of a pass has those that are left."}
    )
    center_rewards_coefficient: float = field(
        default=0.01, metadata={"help": "Weight of the squared mean score of a comparison: keeps scores around 0."}
    )
    eval_dataset_name: str | None = field(
        default=None, metadata={"help": "Comparisons to evaluate on. Default: eval_fraction of the training prompts."}
    )
    eval_fraction: float = field(
        default=0.1, metadata={"help": "Share of the prompts held out where there is no eval_dataset_name; 0: none."}
    )
    normalise: bool = field(
        default=True, metadata={"help": "Shift and scale scores to mean 0 and std 1 on responses of the start model."}
    )
    normalise_samples: int = field(default=64, metadata={"help": "Responses that are sampled to normalise."})
    response_length: int = field(default=53, metadata={"help": "Most tokens of a response sampled to normalise."})
    temperature: float = field(default=0.7, metadata={"help": "Sampling temperature of these responses."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.use_peft, "use_peft", "True: a reward model is an adapter with a head on the frozen base")
        self.require(self.center_rewards_coefficient >= 0, "center_rewards_coefficient", "0 (off) or more")
        self.require(0 <= self.eval_fraction < 1, "eval_fraction", "a share from 0 (no evaluation) to below 1")
        self.require(self.normalise_samples >= 2, "normalise_samples", "at least 2, to have a standard deviation")
        self.require(self.response_length >= 1, "response_length", "at least 1")
        self.require(self.temperature >= 0, "temperature", "0 (greedy) or more")
