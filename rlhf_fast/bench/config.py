"""`BenchConfig`: the few choices of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_fast.runtime.config import Config, at_least, option


@dataclass
class BenchConfig(Config):
    """Measure the kernels and a small PPO run on this machine, and write a report to share."""

    output_dir: str = option("bench", "Where bench.json and bench.html are written.")
    quick: bool = option(False, "Small shapes, a few seconds each: whether it runs, not how fast it is.")
    rounds: int = option(5, "Rounds of the kernels, each of which runs every variant once.", check=at_least(1))
    iterations: int = option(3, "PPO iterations that are timed, after one that is not.", check=at_least(1))
    torch_compile: bool = option(False, "Measure torch.compile's variants too: it needs a compiler, and minutes.")
    use_cpu: bool = option(False, "Compute on the CPU even where there is a GPU.")
