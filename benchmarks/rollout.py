"""Generation here beside transformers' `generate` on the same weights, and its parts beside the machine's limits.

    python -m benchmarks.rollout                                # the demonstration's model, 16 prompts of 64 tokens
    python -m benchmarks.rollout --model path/to/model --batch 4 --new 256
    python -m benchmarks.rollout --smoke                        # a tiny random model: does it run?

Both sides have the same prompts of random tokens and no stop token, so that every response fills its length. They are
interleaved in one process, on the CPU; a ratio is the median of the ratios within a round. The limit of a part is the
time of its products, and of reading its weights, keys and values, at the rates of a large product and a large copy.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.rollout_sides import Ours, Shape, Theirs, generation_config
from benchmarks.vs_trl.models import make_tiny
from rlhf_fast.bench.machine import machine
from rlhf_fast.bench.timing import Work, interleave, least_seconds, limits, median_ratio
from rlhf_fast.model.load import load_causal_lm, load_shared
from rlhf_fast.model.roles import Policy
from rlhf_fast.rollout.engine import bytes_per_token
from rlhf_fast.rollout.sampling import Sampling

MODES = {"greedy": 0.0, "sampling": 1.0}  # temperatures


def main() -> int:
    given = parse()
    torch.set_num_threads(given.threads)
    print(machine(given.threads, "cpu"))
    with tempfile.TemporaryDirectory() as folder:
        model = model_folder(given, Path(folder))
        shape = Shape(2, 8, 8) if given.smoke else Shape(given.batch, given.prompt, given.new)
        for table in measure(model, getattr(torch, given.dtype), shape, given.rounds):
            Console(width=120).print(table)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Folder of a language model. Default: the demonstration's.")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="Of the weights.")
    parser.add_argument("--batch", type=int, default=16, help="Responses decoded together.")
    parser.add_argument("--prompt", type=int, default=64, help="Tokens of each prompt.")
    parser.add_argument("--new", type=int, default=64, help="Tokens of each response, at least 2.")
    parser.add_argument("--rounds", type=int, default=5, help="Rounds; each runs either side once in each mode.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="Threads of torch and kernels.")
    parser.add_argument("--smoke", action="store_true", help="A tiny random model and short lengths instead.")
    return parser.parse_args()


def model_folder(given: argparse.Namespace, folder: Path) -> Path:
    if given.smoke:
        return make_tiny(folder)
    if given.model:
        return given.model
    from rlhf_fast.demo.data import fetch_base_model

    return fetch_base_model(Path("runs/rollout_benchmark"))


def measure(model: Path, dtype: torch.dtype, shape: Shape, rounds: int) -> list[Table]:
    """Both sides in both modes, and the limits, in turn; then a table of the sides and one of the parts."""
    policy = Policy(*load_shared(str(model), dtype=dtype))
    vocabulary = policy.model.lm_head[0].shape[0]
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(vocabulary, (shape.batch, shape.prompt), generator=draw).tolist()
    other = load_causal_lm(str(model), dtype=dtype)
    ours = {mode: Ours(policy, prompts, Sampling(shape.new, (), heat)) for mode, heat in MODES.items()}
    theirs = {mode: Theirs(other, prompts, generation_config(shape.new, heat)) for mode, heat in MODES.items()}
    sides: dict[str, Callable[[], None]] = {f"ours, {mode}": side for mode, side in ours.items()}
    sides |= {f"theirs, {mode}": side for mode, side in theirs.items()}
    times = interleave(sides | limits(), rounds)
    least = partial(least_seconds, product=statistics.median(times["product"]), copy=statistics.median(times["copy"]))
    equal = same_tokens(ours["greedy"].responses, theirs["greedy"].responses)
    floors = {part: least(needed) for part, needed in work(policy, shape).items()}
    return [sides_table(times, shape, equal), *(parts_table(mode, ours[mode].parts[2:], floors) for mode in MODES)]


def work(policy: Policy, shape: Shape) -> dict[str, Work]:
    """What the parts of a rollout cannot do without; the first token of a response comes from the prefill."""
    weights = sum(p.numel() for layer in policy.model.decoder_layers for p in layer.parameters())
    head, size = policy.model.lm_head[0].numel(), policy.model.dtype.itemsize
    steps, prompts = shape.new - 1, shape.batch * shape.prompt
    cached = shape.batch * (shape.prompt + shape.new / 2) * bytes_per_token(policy.model)  # mean over the steps
    return {
        "prefill": Work(2 * prompts * weights, weights * size + prompts * bytes_per_token(policy.model)),
        "decode": Work(steps * 2 * shape.batch * weights, steps * (weights * size + cached)),
        "head and sampling": Work(shape.new * 2 * shape.batch * head, shape.new * head * size),
    }


def same_tokens(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """Share of the responses' tokens that are equal before the first difference of a response."""
    equal = total = 0
    for a, b in zip(ours, theirs, strict=True):
        equal += next((i for i, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]), len(a))
        total += len(a)
    return equal / total


def sides_table(times: dict[str, list[float]], shape: Shape, equal: float) -> Table:
    title = f"{shape.batch} responses of {shape.new} tokens to prompts of {shape.prompt}"
    shown = Table("mode", "ours, tokens/s", "transformers, tokens/s", "ours / transformers", title=title)
    for mode in MODES:
        one, two = times[f"ours, {mode}"], times[f"theirs, {mode}"]
        rates = (f"{shape.tokens / statistics.median(seconds):.0f}" for seconds in (one, two))
        shown.add_row(mode, *rates, f"{median_ratio(two, one):.2f}")
    shown.caption = f"greedy: {equal:.1%} of the tokens are those of transformers until a response first differs"
    return shown


def parts_table(mode: str, rollouts: list[dict[str, float]], floors: dict[str, float]) -> Table:
    """Medians over the rollouts."""
    shown = Table("part", "ms", "share", "% of limit", title=f"where the time of a rollout goes, {mode}")
    whole = statistics.median(sum(parts.values()) for parts in rollouts)
    for part in rollouts[0]:
        seconds = statistics.median(parts[part] for parts in rollouts)
        limit = f"{100 * floors[part] / seconds:.1f}" if part in floors else ""
        shown.add_row(part, f"{1e3 * seconds:.1f}", f"{seconds / whole:.1%}", limit)
    return shown


if __name__ == "__main__":
    sys.exit(main())
