"""`DemoConfig`: the few choices of the demonstration."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf_fast.runtime.fields import KnownFields


@dataclass
class DemoConfig(KnownFields):
    """SFT, a reward model and PPO on bundled customer-service data, with a report."""

    output_dir: str = field(default="runs/demo", metadata={"help": "Everything that the demonstration makes."})
    quick: bool = field(default=False, metadata={"help": "A smaller run: fewer steps, prompts and episodes."})
    seed: int = field(default=0, metadata={"help": "Seed of every stage."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Another base model with a chat template. Default: SmolLM2-135M-Instruct."}
    )
    use_cpu: bool = field(default=False, metadata={"help": "Compute on the CPU even where there is a GPU."})
