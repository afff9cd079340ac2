"""Errors of log-probs, entropy, exact KL and the gradient of the hidden states against float64, beside torch's own.

    python -m benchmarks.accuracy

Logits have standard deviation 4, as a language model's, and the labels are drawn from them.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import rlhf_kernels as kernels
from rlhf_fast.bench import plain

SHAPES = ((256, 576, 49152), (64, 2048, 128256))  # rows, hidden size, vocabulary


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()  # fmt: skip
    for shape in SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            print(f"N, H, V = {shape}, {str(dtype).removeprefix('torch.')}: |error| / |result|, both norms")
            hidden, ref_hidden, weight, labels = inputs(*shape, dtype)
            exact = results("reference", hidden.double(), ref_hidden.double(), weight.double(), labels)
            for name in ("native", "reference", "torch eager"):
                got = results(name, hidden, ref_hidden, weight, labels)
                errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(got, exact, strict=True)]
                print(f"  {name:<12}" + "".join(f"  {what} {e:.1e}" for what, e in zip(NAMES, errors, strict=True)))


NAMES = ("log-prob", "entropy", "exact KL", "gradient")


def inputs(n: int, h: int, v: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of standard deviation 4, as a language model's, and labels drawn from them."""
    g = torch.Generator().manual_seed(0)
    hidden = (4 * torch.randn(n, h, generator=g)).to(dtype)
    ref_hidden = hidden + (0.5 * torch.randn(n, h, generator=g)).to(dtype)
    weight = (torch.randn(v, h, generator=g) / h**0.5).to(dtype)
    labels = torch.multinomial((hidden.float() @ weight.float().t()).softmax(1), 1, generator=g).squeeze(1)
    return hidden, ref_hidden, weight, labels


def results(name: str, hidden: Tensor, ref_hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    leaf = hidden.detach().requires_grad_()
    if name == "torch eager":
        chosen = plain.logprobs(leaf, weight, labels)
        chosen.sum().backward()
        with torch.no_grad():
            everything = torch.nn.functional.linear(hidden, weight).float().log_softmax(1)
            kl = plain.policy_reference(hidden, ref_hidden, weight, labels)[2]
        return chosen.detach(), -(everything.exp() * everything).sum(1), kl, leaf.grad
    out = kernels.linear_logprobs(leaf, weight, labels, entropy=True, entropy_gradient=False, backend=name)
    out.logprobs.sum().backward()
    scored = kernels.policy_reference_logprobs(hidden, ref_hidden, weight, labels, exact_kl=True, backend=name)
    return out.logprobs.detach(), out.entropy, scored.kl, leaf.grad


if __name__ == "__main__":
    main()
