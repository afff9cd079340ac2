"""Log-probs from hidden states beside bare matrix products of the same shapes, interleaved in one process.

    python -m benchmarks.logprobs --shape 1024 576 49152 --threads 2 --repeats 7

Prints, for each variant, the median time as a ratio to its floor: one `torch.mm(out=)` for a forward, two for a forward
and backward with a frozen weight, two for policy and reference. A ratio is the median of the ratios within a round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_kernels import linear_logprobs, policy_reference_logprobs


def main() -> None:
    parser = argparse.ArgumentParser(description="Log-probs beside bare matrix products.")
    parser.add_argument("--shape", type=int, nargs=3, default=[1024, 576, 49152], metavar=("N", "H", "V"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="Threads of torch and kernels.")
    parser.add_argument("--repeats", type=int, default=5, help="Rounds; each runs every variant once.")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    times = measure(variants(*given.shape), given.repeats)
    print(f"N, H, V = {given.shape}, bfloat16, {given.threads} threads, {given.repeats} rounds")
    for name, seconds in times.items():
        floor = "two products" if name not in FORWARD else "one product"
        ratio = statistics.median(a / b for a, b in zip(seconds, times[floor], strict=True))
        print(f"  {name:<36} {ratio:6.2f} x {floor}")


FORWARD = {"one product", "forward", "forward, entropy", "forward, reference"}


def variants(n: int, h: int, v: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name; weights are scaled so that logits are of order 1."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(n, h).bfloat16(), (torch.randn(v, h) / h**0.5).bfloat16()
    labels, upstream = torch.randint(v, (n,)), torch.randn(n)
    logits, gradient = torch.empty(n, v, dtype=torch.bfloat16), torch.empty(n, h, dtype=torch.bfloat16)

    def one_product() -> Tensor:
        return torch.mm(hidden, weight.t(), out=logits)

    def two_products() -> Tensor:
        one_product()
        return torch.mm(logits, weight, out=gradient)

    def backward(backend: str) -> None:
        leaf = hidden.clone().requires_grad_()
        (linear_logprobs(leaf, weight, labels, backend=backend).logprobs * upstream).sum().backward()

    return {
        "one product": one_product,
        "two products": two_products,
        "forward": lambda: linear_logprobs(hidden, weight, labels, backend="native"),
        "forward, entropy": lambda: linear_logprobs(hidden, weight, labels, entropy=True, backend="native"),
        "forward, reference": lambda: linear_logprobs(hidden, weight, labels, backend="reference"),
        "forward + backward": lambda: backward("native"),
        "forward + backward, reference": lambda: backward("reference"),
        "policy + reference model": lambda: policy_reference_logprobs(hidden, hidden, weight, labels, backend="native"),
        "policy + reference model, exact KL": lambda: policy_reference_logprobs(
            hidden, hidden, weight, labels, exact_kl=True, backend="native"
        ),
    }  # fmt: skip


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
