"""`DemoConfig`: the few choices of the demonstration."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_fast.runtime.config import Config, option


@dataclass
class DemoConfig(Config):
    """SFT, a reward model and PPO on bundled customer-service data, with a report."""

    output_dir: str = option("runs/demo", "Everything that the demonstration makes.")
    quick: bool = option(False, "A smaller run: fewer steps, prompts and episodes.")
    seed: int = option(0, "Seed of every stage.")
    model_name_or_path: str | None = option(
        None, "Another base model with a chat template. Default: SmolLM2-135M-Instruct."
    )
    use_cpu: bool = option(False, "Compute on the CPU even where there is a GPU.")
