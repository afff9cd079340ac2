"""The demonstration: SFT, a reward model, PPO, a second reward model that only judges, evaluation, report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import AutoConfig
from transformers.utils.logging import disable_progress_bar

from rlhf_fast.demo.base_model import fetch_base_model
from rlhf_fast.demo.config import DemoConfig
from rlhf_fast.demo.dataset import write_files
from rlhf_fast.demo.page import Results, write_report
from rlhf_fast.demo.reuse import Ledger, is_finished, mark_finished, mark_unfinished
from rlhf_fast.demo.settings import FULL, QUICK, Settings
from rlhf_fast.demo.summary import print_summary
from rlhf_fast.evaluate.compare import Comparison
from rlhf_fast.evaluate.config import EvaluateConfig
from rlhf_fast.evaluate.run import RESULT_FILE, run_evaluate
from rlhf_fast.preferences.config import RewardConfig
from rlhf_fast.preferences.metrics import Evaluation
from rlhf_fast.preferences.reward_model import REWARD_FACTS, run_reward
from rlhf_fast.report.page import REPORT_FILE
from rlhf_fast.runtime.distributed import refuse_many
from rlhf_fast.runtime.files import disk_errors, read_record
from rlhf_fast.runtime.shown import notices
from rlhf_fast.runtime.tracking import read_metrics
from rlhf_fast.train.config import PPORunConfig, SFTConfig
from rlhf_fast.train.ppo_run import run_ppo
from rlhf_fast.train.sft import run_sft

STAGES = 5


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
