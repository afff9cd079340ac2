"""What is measured: for each operation and shape its work, the floor that it is compared with, and the variants.

Weights are scaled so that logits are of order 1. The first variants are the backends of `rlhf_kernels` that run here;
the others are what people write in their place (`plain`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

import rlhf_kernels as kernels
from rlhf_fast.bench import plain
from rlhf_fast.bench.timing import Case, Variant, Work
from rlhf_kernels.extension import MISSING

PROJECTIONS = ((1024, 576, 49152), (256, 2048, 128256))  # rows, hidden size, vocabulary
COLUMNS = ((16, 1024), (256, 512))  # sequences, slots each
BACKENDS = {"cpu": ("native", "reference"), "cuda": ("triton", "reference")}  # by device, the one to compare with first
COMPILED, CROSS_ENTROPY = "torch.compile", "F.linear_cross_entropy"
PPO: dict[str, Any] = {"cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 0.1}


def cases(op: str, device: str = "cpu") -> list[Case]:
    """The cases of an operation."""
    make, shapes = OPERATIONS[op]
    return [make(*shape, device) for shape in shapes]


def backends(device: str) -> tuple[str, ...]:
    """Those that run on `device`: without the C++ extension, a CPU has the reference alone."""
    return ("reference",) if device == "cpu" and MISSING is not None else BACKENDS[device]


class Projection:
    """Inputs of the log-prob operations and the bare products of their shapes, in bfloat16."""

    def __init__(self, n: int, h: int, v: int, device: str) -> None:
        g = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(n, h, generator=g).to(device, torch.bfloat16)
        self.ref_hidden = torch.randn(n, h, generator=g).to(device, torch.bfloat16)
        self.weight = (torch.randn(v, h, generator=g) / h**0.5).to(device, torch.bfloat16)
        self.labels = torch.randint(v, (n,), generator=g).to(device)
        self.columns = tuple(
            torch.randn(5, n, generator=g).to(device)
        )  # old log-probs are far off: half of the slots clip
        self.shape = f"N {n}, H {h}, V {v}"
        self.flops, self.bytes = 2.0 * n * h * v, 2.0 * (n * h + v * h)
        self.logits, self.gradient = (self.hidden.new_empty(n, size) for size in (v, h))

    def one_product(self) -> Tensor:
        return torch.mm(self.hidden, self.weight.t(), out=self.logits)

    def two_products(self) -> Tensor:
        return torch.mm(self.one_product(), self.weight, out=self.gradient)

    def both_models(self) -> Tensor:
        self.one_product()
        return torch.mm(self.ref_hidden, self.weight.t(), out=self.logits)

    def update(self, loss: Callable[[Tensor], Tensor]) -> Variant:
        """A forward and backward of `loss(hidden)`; the weight is frozen."""

        def run() -> Tensor:
            leaf = self.hidden.detach().requires_grad_()
            loss(leaf).backward()
            assert leaf.grad is not None
            return leaf.grad

        return run


def linear_logprobs(n: int, h: int, v: int, device: str = "cpu") -> Case:
    p = Projection(n, h, v, device)
    weight, labels = p.weight, p.labels
    ours: dict[str, Variant] = {
        name: partial(kernels.linear_logprobs, p.hidden, weight, labels, backend=name) for name in backends(device)
    }
    compiled = torch.compile(plain.logprobs)
    others: dict[str, Variant] = {
        "torch eager": lambda: plain.logprobs(p.hidden, weight, labels),
        COMPILED: lambda: compiled(p.hidden, weight, labels),
    }
    if plain.HAS_CROSS_ENTROPY:
        others[CROSS_ENTROPY] = lambda: plain.cross_entropy(p.hidden, weight, labels)
    work, variants = Work(p.flops, p.bytes), no_grad(ours | others)
    return Case("linear_logprobs", p.shape, work, variants, next(iter(ours)), p.one_product, inputs=p)


def linear_ppo_loss(n: int, h: int, v: int, device: str = "cpu") -> Case:
    p = Projection(n, h, v, device)
    weight, labels, columns = p.weight, p.labels, p.columns

    def fused(backend: str) -> Callable[[Tensor], Tensor]:
        return lambda x: kernels.linear_ppo_loss(x, weight, labels, *columns, **PPO, backend=backend).loss

    compiled = torch.compile(plain.ppo_from_hidden)
    variants = {name: p.update(fused(name)) for name in backends(device)} | {
        "torch eager": p.update(lambda x: plain.ppo_from_hidden(x, weight, labels, *columns)),
        COMPILED: p.update(lambda x: compiled(x, weight, labels, *columns)),
    }
    if plain.HAS_CROSS_ENTROPY:
        variants[CROSS_ENTROPY] = p.update(lambda x: plain.cross_entropy(x, weight, labels).mean())
    notes = {CROSS_ENTROPY: "cross-entropy in place of PPO's loss"}
    work = Work(2 * p.flops, p.bytes)
    return Case("linear_ppo_loss", p.shape, work, variants, next(iter(variants)), p.two_products, notes, p)


def policy_reference_logprobs(n: int, h: int, v: int, device: str = "cpu") -> Case:
    p = Projection(n, h, v, device)
    inputs = p.hidden, p.ref_hidden, p.weight, p.labels
    compiled = torch.compile(plain.policy_reference)
    variants = {
        name: lambda name=name: kernels.policy_reference_logprobs(*inputs, exact_kl=True, backend=name)
        for name in backends(device)
    } | {"torch eager": lambda: plain.policy_reference(*inputs), COMPILED: lambda: compiled(*inputs)}
    work = Work(2 * p.flops, p.bytes + 2.0 * n * h)
    return Case("policy_reference_logprobs", p.shape, work, no_grad(variants), next(iter(variants)), p.both_models)


class Columns:
    """Flat float32 columns of B sequences of T slots each, and the same padded (B, T)."""

    def __init__(self, b: int, t: int, device: str) -> None:
        self.b, self.t, self.slots = b, t, b * t
        self.flat = torch.randn(8, b * t, generator=torch.Generator().manual_seed(0)).to(device)
        self.cu = torch.arange(0, b * t + 1, t, dtype=torch.int32, device=device)
        self.shape = f"{b} x {t}"

    def padded(self, i: int) -> Tensor:
        return self.flat[i].view(self.b, self.t)


def gae_and_whiten(b: int, t: int, device: str = "cpu") -> Case:
    c = Columns(b, t, device)
    rewards, values = c.flat[0], c.flat[1]

    def ours(backend: str) -> Variant:
        def run() -> None:
            advantages = rewards.clone()
            kernels.gae_(advantages, values, c.cu, gamma=0.99, lam=0.95, whiten=True, backend=backend)

        return run

    variants = {name: ours(name) for name in backends(device)}
    variants["loop over time"] = lambda: plain.gae_and_whiten(c.padded(0), c.padded(1))
    return Case("gae_and_whiten", c.shape, Work(0, 4.0 * c.slots * 7), variants, next(iter(variants)))


def shape_rewards(b: int, t: int, device: str = "cpu") -> Case:
    c = Columns(b, t, device)
    rewards, kl, scores = torch.empty_like(c.flat[0]), c.flat[0], c.flat[1, :b]
    last = c.cu[1:].long() - 1
    variants: dict[str, Variant] = {
        name: lambda name=name: kernels.shape_rewards_(rewards, kl, scores, last, c.cu, kl_coef=0.1, backend=name)
        for name in backends(device)
    } | {"torch eager": lambda: plain.shape_rewards(c.padded(0), scores)}
    return Case("shape_rewards", c.shape, Work(0, 8.0 * c.slots), variants, next(iter(variants)))


def ppo_loss(b: int, t: int, device: str = "cpu") -> Case:
    c = Columns(b, t, device)
    columns = [0.1 * x for x in c.flat[:6]]

    def update(loss: Callable[..., Tensor]) -> Variant:
        def run() -> None:
            logprobs, values = columns[0].detach().requires_grad_(), columns[3].detach().requires_grad_()
            loss(logprobs, *columns[1:3], values, *columns[4:]).backward()

        return run

    compiled = torch.compile(plain.ppo)
    variants = {
        name: update(lambda *x, name=name: kernels.ppo_loss(*x, **PPO, backend=name).loss) for name in backends(device)
    } | {"torch eager": update(plain.ppo), COMPILED: update(compiled)}
    return Case("ppo_loss", c.shape, Work(0, 4.0 * c.slots * 8), variants, next(iter(variants)))


def no_grad(variants: Mapping[str, Variant]) -> dict[str, Variant]:
    return {name: torch.no_grad()(run) for name, run in variants.items()}


OPERATIONS: dict[str, tuple[Callable[..., Case], tuple[tuple[int, ...], ...]]] = {
    "linear_logprobs": (linear_logprobs, PROJECTIONS),
    "linear_ppo_loss": (linear_ppo_loss, PROJECTIONS),
    "policy_reference_logprobs": (policy_reference_logprobs, PROJECTIONS),
    "gae_and_whiten": (gae_and_whiten, COLUMNS),
    "shape_rewards": (shape_rewards, COLUMNS),
    "ppo_loss": (ppo_loss, COLUMNS),
}
