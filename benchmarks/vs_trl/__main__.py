"""The same PPO job, from the same saved models, in TRL 1.12 (its last release with PPO) and in rlhf_fast.

    python -m benchmarks.vs_trl                                # the uniform workload; makes .venv-trl the first time
    python -m benchmarks.vs_trl --workload ragged --iterations 1
    python -m benchmarks.vs_trl --smoke                        # tiny random models: does it run?
    python -m benchmarks.vs_trl.learning                       # what both learn

Each side runs in a process of its own, one at a time, in turn, on the CPU, with as many threads as OMP_NUM_THREADS or
torch chooses. Both have bfloat16 weights, a LoRA policy of rank 16 on every linear layer, whose bare base is the
reference, AdamW, one optimiser step a PPO epoch, and the whole batch in one rollout.

The reward is the same classifier on both sides, held beside the other models: TRL runs it on the batch's token ids,
rlhf_fast, through the `ClassifierReward` that a user gets, on the decoded text, one sequence at a time.

Rows of TRL: its critic is a classifier of its own, trained whole ("full", as its examples do) or with LoRA like the
policy ("adapter"; head and adapter stay in bfloat16, which is faster than exact), in micro-batches of 4 or 16, without
checkpointing of activations. Ratios are over the TRL row whose iteration is the fastest. Rows of rlhf_fast: one a
critic, with the default micro-batches. Where other work slows the machine down, its CPU time says more than seconds.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import environments
from benchmarks.vs_trl import report
from benchmarks.vs_trl.jobs import OASST, WORKLOADS, Job, choose_prompts
from benchmarks.vs_trl.models import make_classifier, make_tiny
from benchmarks.vs_trl.sides import PACKAGES, SIDES, TRL, run
from rlhf_fast.bench.machine import machine


def main() -> None:
    given = parse()
    given.output_dir.mkdir(parents=True, exist_ok=True)
    model, classifier = models(given)
    python = environments.make(TRL, PACKAGES)
    console = Console(width=150)
    for name in ["smoke"] if given.smoke else given.workload:
        folder = given.output_dir / name
        folder.mkdir(exist_ok=True)
        jobs = make_jobs(given, name, model, classifier)
        conditions = machine(torch.get_num_threads(), "cpu")
        print(conditions)
        runs = [
            run(side, SIDES[side], jobs[side], round_, folder, python)
            for round_ in range(given.rounds)
            for side in given.sides
        ]
        report.write(runs, folder, f"{name}: {conditions}; load afterwards {os.getloadavg()[0]:.1f}")
        for table in report.tables(runs, name):
            console.print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = [name for name in WORKLOADS if name != "smoke"]
    parser.add_argument("--workload", nargs="+", choices=shapes, default=["uniform"], help="Shapes of an iteration.")
    parser.add_argument("--smoke", action="store_true", help="A tiny random model and short lengths instead.")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="The rows.", metavar="ROW")
    parser.add_argument("--iterations", type=int, default=2, help="Iterations of a process that count.")
    parser.add_argument("--warmup", type=int, help="Iterations before those. Default: the workload's own number.")
    parser.add_argument("--rounds", type=int, default=1, help="Rounds; each runs every row once.")
    parser.add_argument("--model", type=Path, help="Folder of a language model. Default: the demonstration's.")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/vs_trl"), help="Models, numbers and plots.")
    return parser.parse_args()


def models(given: argparse.Namespace) -> tuple[Path, Path]:
    """Folders of the language model and of the classifier on its base; made where they are missing."""
    if given.smoke:
        model = make_tiny(given.output_dir / "tiny")
    elif given.model:
        model = given.model
    else:
        from rlhf_fast.demo.data import fetch_base_model

        model = fetch_base_model(given.output_dir / "base")
    return model, make_classifier(model, given.output_dir / f"{model.resolve().name}-classifier")


def make_jobs(given: argparse.Namespace, workload: str, model: Path, classifier: Path) -> dict[str, Job]:
    from transformers import AutoTokenizer

    shape = WORKLOADS[workload]
    data = Path(os.devnull) if given.smoke else environments.ROOT.parent / OASST
    prompts = choose_prompts(shape.prompt_lengths, AutoTokenizer.from_pretrained(model), data)
    warmup = shape.warmup if given.warmup is None else given.warmup
    return {
        name: Job(
            str(model.resolve()), str(classifier.resolve()), prompts, shape.response_length, shape.stop,
            shape.ppo_epochs, warmup, given.iterations, SIDES[name].critic, SIDES[name].micro_batch,
        )
        for name in given.sides
    }  # fmt: skip


if __name__ == "__main__":
    main()
