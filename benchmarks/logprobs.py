"""Log-probs from hidden states beside bare matrix products of the same shapes, interleaved in one process.

    python -m benchmarks.logprobs --threads 2 --repeats 7
    python -m benchmarks.logprobs --shape 1024 576 49152 --shape 256 2048 128256

Prints, for each variant, the time as a ratio to its floor: one `torch.mm(out=)` for a forward, two for a forward and
backward with a frozen weight, two for policy and reference. A ratio is the median of the ratios within a round, beside
the smallest and the largest of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlhf_kernels.logprobs import native, reference

SHAPES = [[1024, 576, 49152], [256, 2048, 128256]]
SETTINGS = {"bias": None, "temperature": 1.0, "softcap": None}


def main() -> None:
    parser = argparse.ArgumentParser(description="Log-probs beside bare matrix products.")
    parser.add_argument("--shape", type=int, nargs=3, action="append", metavar=("N", "H", "V"), help="Repeatable.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="Threads of torch and kernels.")
    parser.add_argument("--repeats", type=int, default=5, help="Rounds; each runs every variant once.")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for shape in given.shape or SHAPES:
        times = measure(variants(*shape), given.repeats)
        print(f"N, H, V = {shape}, bfloat16, {given.threads} threads, {given.repeats} rounds")
        for name, seconds in times.items():
            floor = "two products" if name not in FORWARD else "one product"
            ratios = [a / b for a, b in zip(seconds, times[floor], strict=True)]
            median = statistics.median(ratios)
            print(f"  {name:<36} {median:6.2f} x {floor}  ({min(ratios):.2f} to {max(ratios):.2f})")


FORWARD = {"one product", "forward", "forward, entropy", "forward, reference"}


def variants(n: int, h: int, v: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name; weights are scaled so that logits are of order 1."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(n, h).bfloat16(), (torch.randn(v, h) / h**0.5).bfloat16()
    labels, upstream = torch.randint(v, (n,)), torch.randn(n)
    logits, gradient = torch.empty(n, v, dtype=torch.bfloat16), torch.empty(n, h, dtype=torch.bfloat16)
    given: dict[str, Any] = {"hidden": hidden, "weight": weight, "labels": labels, **SETTINGS}

    def one_product() -> Tensor:
        return torch.mm(hidden, weight.t(), out=logits)

    def two_products() -> Tensor:
        one_product()
        return torch.mm(logits, weight, out=gradient)

    def forward(entropy: bool = False) -> tuple[Tensor, ...]:
        return native.linear_logprobs(**given, entropy=entropy, directions=False)

    def forward_with_directions() -> Tensor:
        directions = native.linear_logprobs(**given, entropy=False, directions=True)[3]
        return torch.mul(directions, upstream[:, None], out=gradient)

    def forward_and_backward() -> tuple[Tensor, ...]:
        logprobs, entropy, row_statistics, _ = forward()
        results: dict[str, Any] = {"logprobs": logprobs, "entropy": entropy, "statistics": row_statistics}
        upstreams: dict[str, Any] = {
            "d_logprobs": upstream,
            "d_entropy": None,
            "weight_gradient": False,
            "bias_gradient": False,
        }
        return native.linear_logprobs_backward(**given, **results, **upstreams)

    def policy_and_reference(exact_kl: bool) -> tuple[Tensor, ...]:
        return native.policy_reference_logprobs(**given, ref_hidden=hidden, ref_weight=None, exact_kl=exact_kl)

    def torch_backward() -> None:
        leaf = hidden.clone().requires_grad_()
        out = reference.linear_logprobs(**{**given, "hidden": leaf}, entropy=False)
        (out.logprobs * upstream).sum().backward()

    return {
        "one product": one_product,
        "two products": two_products,
        "forward": forward,
        "forward, entropy": lambda: forward(entropy=True),
        "forward, reference": lambda: reference.linear_logprobs(**given, entropy=False),
        "forward, directions": forward_with_directions,
        "forward + backward, recomputed": forward_and_backward,
        "forward + backward, reference": torch_backward,
        "policy + reference model": lambda: policy_and_reference(exact_kl=False),
        "policy + reference model, exact KL": lambda: policy_and_reference(exact_kl=True),
    }


def measure(what: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each variant in each round; one round before them is not counted."""
    times: dict[str, list[float]] = {name: [] for name in what}
    for turn in range(repeats + 1):
        for name, run in what.items():
            start = time.perf_counter()
            run()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    main()
