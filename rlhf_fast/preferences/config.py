"""`RewardConfig`: every choice of training a reward model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_fast.runtime.config import Check, StageConfig, at_least, option, zero_or_more


@dataclass
class RewardConfig(StageConfig):
    """A reward model on comparisons: a LoRA adapter with a scalar head."""

    stage: ClassVar[str] = "reward"

    output_dir: str = option("reward", "Where the adapter, its head and its numbers go.")
    model_name_or_path: str | None = option(
        None, "What it starts from: an SFT output (full model or adapter folder), or a base model."
    )
    learning_rate: float = option(2e-4, "Peak learning rate of AdamW.")
    num_train_epochs: float = option(2.0, "Passes over the comparisons; steps are rounded up.")
    per_device_train_batch_size: int = option(
        16, "Comparisons in an optimiser step; the last of a pass has those that are left."
    )
    center_rewards_coefficient: float = option(
        0.01, "Weight of the squared mean score of a comparison: keeps scores around 0.", check=zero_or_more("off")
    )
    eval_dataset_name: str | None = option(
        None, "Comparisons to evaluate on. Default: eval_fraction of the training prompts."
    )
    eval_fraction: float = option(
        0.1, "Share of the prompts held out where there is no eval_dataset_name; 0: none.",
        check=Check(lambda value: 0 <= value < 1, "a share from 0 (no evaluation) to below 1"),
    )  # fmt: skip
    normalise: bool = option(True, "Shift and scale scores to mean 0 and std 1 on responses of the start model.")
    normalise_samples: int = option(
        64, "Responses that are sampled to normalise.",
        check=Check(lambda value: value >= 2, "at least 2, to have a standard deviation"),
    )  # fmt: skip
    response_length: int = option(53, "Most tokens of a response sampled to normalise.", check=at_least(1))
    temperature: float = option(0.7, "Sampling temperature of these responses.", check=zero_or_more("greedy"))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.use_peft, "use_peft", "True: a reward model is an adapter with a head on the frozen base")
