"""How many operations a training layer, a decode layer and a decode step ask of the device, counted on a CPU.

    python -m benchmarks.launches

An operation that computes or copies counts once, whatever it is made of: one of `rlhf_kernels` is one launch on CUDA,
where it is a Triton kernel or torch's flash attention; `lora_linear` is 5 forward and 7 backward. Views and memory
without values count nothing.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf_fast.bench.models import SHAPES, shared_model
from rlhf_fast.model.attention import DecodeStep, KVCache
from rlhf_fast.model.fused_blocks import join_weights
from rlhf_fast.model.packed import Packed
from rlhf_fast.model.roles import Policy
from rlhf_fast.rollout.engine import Engine
from rlhf_fast.rollout.sampling import Sampling

CPU = torch.device("cpu")
MEMORY = ("aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided", "aten::detach",
          "aten::_unsafe_view")  # fmt: skip


class Launches(TorchDispatchMode):
    """Within it, `counts` says how often each operation ran; not those in a `Replay`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.paused = False

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation._schema.name
        is_view = any(out.alias_info and not out.alias_info.is_write for out in operation._schema.returns)
        if not (self.paused or is_view or name in MEMORY):
            self.counts[name] += 1
        return operation(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def model(layers: int) -> Policy:
    """A toy Llama with LoRA on every linear layer."""
    before = SHAPES["toy"]
    SHAPES["toy"] = replace(before, layers=layers)
    try:
        return Policy(shared_model("toy", CPU, "policy"), "policy")
    finally:
        SHAPES["toy"] = before


def training(lengths: Sequence[int], layers: int) -> tuple[Counter[str], Counter[str]]:
    """Operations of a forward to log-probs, and of its backward, over sequences of these lengths."""
    policy = model(layers)
    sequences = [[3 + i % 100 for i in range(length)] for length in lengths]
    packed = Packed.from_sequences(sequences, [[-100, *sequence[1:]] for sequence in sequences])
    with Launches() as forward:
        loss = policy.logprobs(packed).logprobs.sum()
    with Launches() as backward:
        loss.backward()
    return forward.counts, backward.counts


def training_layer(lengths: Sequence[int]) -> tuple[Counter[str], Counter[str]]:
    """The operations that one layer adds, forward and backward."""
    one, two = training(lengths, 1), training(lengths, 2)
    for less, more in zip(one, two, strict=True):
        more.subtract(less)
    return +two[0], +two[1]


def decode_layer(rows: int, *, joined: bool) -> Counter[str]:
    """The operations that one layer adds to a decode step as it is on CUDA: through the model's modules, with adapters
    cast once; but attention is 6 of torch's here, and one kernel there. joined: weights side by side, as there."""
    found = []
    for layers in (1, 2):
        shared, cache = model(layers).model, KVCache(rows, 8)
        if joined:
            join_weights(shared.base, on="cpu")
        tokens, lengths = torch.full((rows,), 3), torch.ones(rows, dtype=torch.int64)
        with torch.no_grad(), shared.routing.keep_factors():
            shared.decode(tokens, DecodeStep(cache, lengths, 1), "policy")  # allocates the cache, casts the adapters
            with Launches() as launches:
                shared.decode(tokens, DecodeStep(cache, lengths, 1), "policy")
        found.append(launches.counts)
    found[1].subtract(found[0])
    return +found[1]


class Replay:
    """Stands in for a captured step: the step runs, and none of its operations counts."""

    def __init__(self, launches: Launches, step: Any, n: int, longest: int) -> None:
        self.launches, self.run = launches, lambda: step(n, longest)
        self.number = 0

    def replay(self) -> None:
        self.launches.paused = True
        self.run()
        self.launches.paused, self.number = False, self.number + 1


def decoding(rows: int, steps: int, unread: int) -> tuple[int, int, int]:
    """Replays, readings by the host, and operations outside the replays, of `steps` steps of `rows` rows after the
    first token of each."""
    prompts = [[3, 4, 5 + row] for row in range(rows)]
    engine = Engine(model(1), prompts, Sampling(1 + steps, ()), list(range(rows)), rows, 10_000, unread=unread)
    launches, replays, readings = Launches(), [], 0
    engine.stepper.refused = None
    longest = 3 + steps

    def graph(step: Any, n: int, _: int) -> Replay:
        replays.append(Replay(launches, step, rows, longest))
        return replays[-1]

    engine.stepper._graph = graph
    with torch.no_grad():
        engine._admit()
        with launches:
            while engine.requests:
                engine._decode()
                readings += 1
    return sum(one.number for one in replays), readings, launches.total


def main() -> int:
    table = Table("what", "operations", title="Operations of the device", title_justify="left", box=None)
    for lengths in ((256,), (16,) * 16, (2,) * 128):
        forward, backward = training_layer(lengths)
        what = f"training layer, {len(lengths)} sequences of {lengths[0]}"
        table.add_row(f"{what}, forward", f"{forward.total()}: {shown(forward)}")
        table.add_row(f"{what}, backward", f"{backward.total()}: {shown(backward)}")
    for joined in (False, True):
        layer, how = decode_layer(16, joined=joined), "side by side" if joined else "apart"
        table.add_row(f"layer of a decode step, weights {how}", f"{layer.total()}: {shown(layer)}")
    for rows, steps in ((4, 32), (16, 32), (16, 64)):
        replays, readings, others = decoding(rows, steps, 8)
        table.add_row(
            f"decode, {rows} rows, {steps} steps", f"{replays} replays, {others} others in {readings} readings"
        )
    Console(width=160).print(table)
    return 0


def shown(counts: Counter[str]) -> str:
    return ", ".join(f"{name.partition('::')[2]} {count}" for name, count in counts.most_common())


if __name__ == "__main__":
    sys.exit(main())
