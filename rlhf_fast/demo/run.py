"""The demonstration: SFT, a reward model, PPO, a second reward model that only judges, evaluation, report.

What each stage is told is in `Settings`, for a full and a quick run. Finished stages are kept: a later run with the
same settings reuses them, and goes on from the first that differs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import AutoConfig
from transformers.utils.logging import disable_progress_bar

from rlhf_fast import __version__
from rlhf_fast.demo.config import DemoConfig
from rlhf_fast.demo.data import DemoFiles, fetch_base_model, write_files
from rlhf_fast.demo.page import Results, print_summary, write_report
from rlhf_fast.evaluate.compare import Comparison
from rlhf_fast.evaluate.config import EvaluateConfig
from rlhf_fast.evaluate.run import RESULT_FILE, run_evaluate
from rlhf_fast.preferences.config import RewardConfig
from rlhf_fast.preferences.metrics import Evaluation
from rlhf_fast.preferences.reward_model import REWARD_FACTS, run_reward
from rlhf_fast.report.page import REPORT_FILE
from rlhf_fast.runtime.distributed import refuse_many
from rlhf_fast.runtime.files import disk_errors, read_record, write_text
from rlhf_fast.runtime.shown import notices
from rlhf_fast.runtime.tracking import read_metrics
from rlhf_fast.train.config import PPORunConfig, SFTConfig
from rlhf_fast.train.ppo_run import run_ppo
from rlhf_fast.train.sft import run_sft

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


STAGES = 5


MARKER = "finished.json"


class Ledger:
    """Which stages are finished. A stage is known by its settings and by those of the stages that it needs."""

    def __init__(self) -> None:
        self.keys: dict[str, str] = {}

    def key(self, name: str, settings: dict[str, Any], needs: tuple[str, ...]) -> str:
        """Record and return the key of stage `name`; the stages in `needs` are recorded before."""
        known = [__version__, settings, [self.keys[need] for need in needs]]
        self.keys[name] = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
        return self.keys[name]


def is_finished(folder: Path, key: str) -> bool:
    try:
        return json.loads((folder / MARKER).read_text())["key"] == key
    except (OSError, ValueError, KeyError):
        return False


def mark_finished(folder: Path, key: str) -> None:
    write_text(folder / MARKER, json.dumps({"key": key}) + "\n")


def mark_unfinished(folder: Path) -> None:
    (folder / MARKER).unlink(missing_ok=True)


@dataclass
class _Pipeline:
    console: Console
    ledger: Ledger = field(default_factory=Ledger)
    number: int = 0

    def stage(
        self, title: str, run: Callable[[dict[str, Any]], Any], settings: dict[str, Any], needs: tuple[str, ...] = ()
    ) -> Path:
        """Run a stage, or reuse it where it is finished with these settings; returns its folder."""
        self.number += 1
        folder = Path(settings["output_dir"])
        key = self.ledger.key(folder.name, settings, needs)
        head = f"[bold]{self.number}/{STAGES} {title}[/bold]"
        if is_finished(folder, key):
            self.console.print(f"{head}: reused from {folder}")
            return folder
        self.console.print(head)
        left = "The stages before it are whole: the same command goes on from there."
        with disk_errors(f"begin {str(folder)!r}", left):
            mark_unfinished(folder)
        started = time.perf_counter()
        run(settings)
        with disk_errors(f"note that {str(folder)!r} is finished", left):
            mark_finished(folder, key)
        self.console.print(f"    saved to {folder} ({time.perf_counter() - started:.0f} s)")
        return folder


def run_demo(config: DemoConfig) -> Path:
    """Run what is not there yet, print the summary, write `report.html`; returns its path. Raises `UsageError`."""
    refuse_many("demo")
    console = Console()
    disable_progress_bar()  # of model loading, which takes a second here
    notices.setLevel(logging.ERROR)  # the stages have lines of their own here
    started = time.perf_counter()
    folder, size = Path(config.output_dir), QUICK if config.quick else FULL
    with disk_errors(f"write the rows to {str(folder / 'data')!r}", "No stage has begun."):
        files = write_files(folder / "data", heldout=size.heldout)
    base = config.model_name_or_path or str(fetch_base_model(folder / "base"))
    settings, pipeline = Settings(config, size, folder, files, base, last_third(base)), _Pipeline(console)
    pipeline.stage("SFT on the middle replies", lambda s: run_sft(SFTConfig(**s)), settings.sft())
    pipeline.stage("Reward model", lambda s: run_reward(RewardConfig(**s)), settings.proxy_reward(), ("sft",))
    pipeline.stage(
        "PPO against the reward model", lambda s: run_ppo(PPORunConfig(**s)), settings.ppo(), ("sft", "proxy_reward")
    )
    pipeline.stage(
        "Gold reward model, on other comparisons", lambda s: run_reward(RewardConfig(**s)), settings.gold_reward(),
        ("sft",),
    )  # fmt: skip
    pipeline.stage(
        "Evaluation on held-out prompts", lambda s: run_evaluate(EvaluateConfig(**s)), settings.evaluation(),
        ("ppo", "gold_reward"),
    )  # fmt: skip
    results = read_results(folder)
    report = folder / REPORT_FILE
    with disk_errors(f"write {str(report)!r}", "Every stage is whole: the same command writes the report alone."):
        write_report(results, report)
    print_summary(console, results, folder, seconds=time.perf_counter() - started)
    return report


def last_third(model: str) -> list[int]:
    """Indices of the last third of the model's decoder layers: where the demonstration puts its adapters."""
    count = AutoConfig.from_pretrained(model).get_text_config().num_hidden_layers
    return list(range(count - max(1, count // 3), count))


def read_results(folder: Path) -> Results:
    """What the stages left in `folder`."""
    rewards = {
        name: read_record(folder / f"{name}_reward" / REWARD_FACTS, Evaluation, "evaluation")
        for name in ("proxy", "gold")
    }
    comparison = read_record(folder / "evaluation" / RESULT_FILE, Comparison)
    return Results(comparison, rewards["proxy"], rewards["gold"], read_metrics(folder / "ppo"))
