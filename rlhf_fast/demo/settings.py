"""What each stage of the demonstration is told, for a full and a quick run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_fast.demo.config import DemoConfig
from rlhf_fast.demo.dataset import DemoFiles

RESPONSE_LENGTH = 80  # the longest reply of the data has 83 tokens, the mean 47
TEMPERATURE = 0.7


@dataclass(frozen=True)
class Size:
    """Passes over the data, and PPO's episodes; `heldout` prompts are judged."""

    sft_epochs: float
    reward_epochs: float
    episodes: int
    heldout: int | None
    normalise_samples: int


FULL = Size(sft_epochs=1, reward_epochs=1, episodes=224, heldout=None, normalise_samples=64)
QUICK = Size(sft_epochs=0.4, reward_epochs=0.5, episodes=64, heldout=36, normalise_samples=24)


@dataclass(frozen=True)
class Settings:
    """The keyword arguments of every stage's config."""

    config: DemoConfig
    size: Size
    folder: Path
    files: DemoFiles
    base: str
    layers: list[int]  # that get adapters: backward stops below them

    def sft(self) -> dict[str, Any]:
        return self._training("sft") | {
            "model_name_or_path": self.base, "dataset_name": str(self.files.demonstrations),
            "num_train_epochs": self.size.sft_epochs, "learning_rate": 5e-4, "warmup_steps": 2,
            "per_device_train_batch_size": 8, "lora_layers": self.layers,
        }  # fmt: skip

    def reward(self, name: str, comparisons: Path, seed: int) -> dict[str, Any]:
        return self._training(name) | {
            "model_name_or_path": str(self.folder / "sft"), "dataset_name": str(comparisons),
            "eval_dataset_name": str(self.files.heldout_comparisons), "num_train_epochs": self.size.reward_epochs,
            "learning_rate": 1e-3, "warmup_steps": 2, "per_device_train_batch_size": 8, "seed": seed,
            "normalise_samples": self.size.normalise_samples, "response_length": RESPONSE_LENGTH,
            "temperature": TEMPERATURE,
        }  # fmt: skip

    def proxy_reward(self) -> dict[str, Any]:
        return self.reward("proxy_reward", self.files.proxy_comparisons, self.config.seed)

    def gold_reward(self) -> dict[str, Any]:
        return self.reward("gold_reward", self.files.gold_comparisons, self.config.seed + 1)

    def ppo(self) -> dict[str, Any]:
        return self._training("ppo") | {
            "sft_model_path": str(self.folder / "sft"), "reward_model_path": str(self.folder / "proxy_reward"),
            "dataset_name": str(self.files.prompts), "total_episodes": self.size.episodes,
            "per_device_train_batch_size": 32, "learning_rate": 2e-4, "num_ppo_epochs": 2, "num_mini_batches": 2,
            "response_length": RESPONSE_LENGTH, "temperature": TEMPERATURE, "kl_coef": 0.05,
            "lr_scheduler_type": "constant", "missing_eos_penalty": 1.0,
        }  # fmt: skip

    def evaluation(self) -> dict[str, Any]:
        return {
            "model_path": str(self.folder / "ppo"), "baseline_path": str(self.folder / "sft"),
            "reward_model_paths": [str(self.folder / "proxy_reward"), str(self.folder / "gold_reward")],
            "dataset_name": str(self.files.heldout_comparisons), "response_length": RESPONSE_LENGTH,
            "temperature": TEMPERATURE, "seed": self.config.seed, "use_cpu": self.config.use_cpu,
            "output_dir": str(self.folder / "evaluation"),
        }  # fmt: skip

    def _training(self, name: str) -> dict[str, Any]:
        return {
            "output_dir": str(self.folder / name), "seed": self.config.seed, "use_cpu": self.config.use_cpu,
            "lr_scheduler_type": "cosine", "save_strategy": "no",
        }  # fmt: skip
