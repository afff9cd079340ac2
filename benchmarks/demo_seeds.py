"""Does the demonstration's PPO gain hold for other seeds? Runs it for each and prints one Markdown row a seed.

    python -m benchmarks.demo_seeds --seeds 0 1 2 --output_dir runs/seeds

Every stage of a seed (SFT, both reward models, PPO, evaluation) runs with that seed; finished stages are reused.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rlhf_fast.demo.config import DemoConfig
from rlhf_fast.demo.data import fetch_base_model
from rlhf_fast.demo.page import Results
from rlhf_fast.demo.run import read_results, run_demo
from rlhf_fast.runtime.statistics import Interval

COLUMNS = (
    "seed", "gold: PPO wins", "proxy: PPO wins", "KL, nats a response", "distinct-2, PPO / SFT", "length, PPO / SFT",
    "proxy, gold accuracy",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="The demonstration for several seeds.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="One run for each.")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/seeds"), help="A folder for each seed in it.")
    parser.add_argument("--quick", action="store_true", help="The demonstration's quick run.")
    given = parser.parse_args()
    base = str(fetch_base_model(given.output_dir / "base"))
    rows = []
    for seed in given.seeds:
        folder = given.output_dir / f"seed{seed}"
        run_demo(DemoConfig(output_dir=str(folder), seed=seed, quick=given.quick, model_name_or_path=base))
        rows.append(row(seed, read_results(folder)))
    print("\n".join(["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS), *rows]))


def row(seed: int, results: Results) -> str:
    comparison = results.comparison
    proxy, gold = comparison.rewards
    cells = (
        str(seed), percent(gold.win_rate), percent(proxy.win_rate), f"{comparison.kl:.1f}",
        f"{comparison.second.distinct_2 / comparison.first.distinct_2:.2f}",
        f"{comparison.second.mean_length / comparison.first.mean_length:.2f}",
        f"{results.proxy.accuracy.value:.3f}, {results.gold.accuracy.value:.3f}",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def percent(interval: Interval) -> str:
    return f"{interval.value:.1%} ({interval.low:.1%} to {interval.high:.1%})"


if __name__ == "__main__":
    main()
