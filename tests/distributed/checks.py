"""What each of two processes checks of the exchanges, with expected values by hand; and ways to go wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rlhf_fast.rollout.rollout import Rollout
from rlhf_fast.runtime.distributed import (
    from_main,
    gather,
    own_share,
    rank,
    sum_gradients,
    sum_over_processes,
    tensors_from_main,
)
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.launch import start
from rlhf_fast.train import sft
from tests.distributed.cases import train

PROMPTS = [[5], [6, 7], [8], [9, 10, 11]]
RESPONSES = [[12, 2], [13, 14, 15], [16], [17, 2]]
FINISHED = [True, False, False, True]


def exchanges() -> None:
    start(use_cpu=True, timeout=60)
    assert sum_over_processes(1, 0.5 * rank()) == [2, 0.5]
    assert list(own_share([10, 11, 12])) == ([10], [11, 12])[rank()]
    whole = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert gather(whole[:1] if rank() else whole[1:]).tolist() == [[3.0, 4.0], [5.0, 6.0], [1.0, 2.0]]
    assert gather(whole if rank() else whole[:0]).tolist() == whole.tolist()
    masks = gather(torch.tensor([True, False] if rank() else [True]))
    assert masks.dtype == torch.bool and masks.tolist() == [True, True, False]
    numbers = gather(torch.tensor([1 << 40]) + rank())
    assert numbers.tolist() == [1 << 40, (1 << 40) + 1]


def gradients() -> None:
    """The first has a gradient in both, the second in process 1 only, the third in none."""
    start(use_cpu=True, timeout=60)
    first, second, third = (nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (), (4,)))
    first.grad = torch.arange(6.0).view(2, 3) * (1 + 9 * rank())
    second.grad = torch.tensor(7.0) if rank() else None
    sum_gradients([first, second, third])
    assert first.grad.tolist() == [[0.0, 11.0, 22.0], [33.0, 44.0, 55.0]]
    assert second.grad is not None and float(second.grad) == 7 and third.grad is None


def rollouts() -> None:
    """Of two sequences each, beside the rollout of all four."""
    start(use_cpu=True, timeout=60)
    whole, own = _rollout(0, 4), _rollout(2 * rank(), 2 * rank() + 2)
    got = own.gather()
    for name in ("tokens", "cu_seqlens", "prompt_lengths", "cu_responses", "slot_rows", "labels", "score_index",
                 "finished", "truncated", "prompt_rows", "seeds", "sampled_logprobs", "bootstrap"):  # fmt: skip
        one, other = getattr(got, name), getattr(whole, name)
        assert one.dtype == other.dtype and torch.equal(one, other), name
    assert torch.equal(got.kl, whole.kl)
    slots = slice(0, whole.cu_responses[2]) if rank() == 0 else slice(whole.cu_responses[2], None)
    assert torch.equal(got.ref_hidden[slots], own.ref_hidden) and got.ref_hidden.sum() == own.ref_hidden.sum()
    mine = [2 * rank(), 2 * rank() + 1]
    assert torch.equal(got.select(mine)[0].ref_hidden, own.ref_hidden)
    assert torch.equal(got.select(mine)[0].tokens, own.tokens)


def another_run(folder: Path, output: Path, what: str) -> None:
    """SFT in which process 1 has another learning rate, other data, other initial weights, or goes on."""
    options: dict[str, Any] = {"ddp_timeout": 60}
    if rank() == 1 and what == "config":
        options["learning_rate"] = 0.5
    if rank() == 1 and what == "resume":
        options["resume"] = "auto"
    if rank() == 1 and what == "data":
        options["dataset_name"] = f"{folder}/others.jsonl"
    if rank() == 1 and what == "weights":
        sft.seed_everything = lambda seed: torch.manual_seed(seed + 1)
    train("sft", folder, output, options)


def long_run(folder: Path, output: Path, timeout: int, shard: bool) -> None:
    """PPO that is not over before somebody stops it, with checkpoints at the end only."""
    options = {"total_episodes": 80_000, "save_steps": 10_000, "ddp_timeout": timeout, "shard_base": shard}
    train("ppo", folder, output, options)


def from_process_0() -> None:
    """What process 0 gives or raises reaches process 1, whose own function is not called."""
    start(use_cpu=True, timeout=60)
    assert from_main(lambda: {"rank": rank(), "x": [1.5, None, "ä"]}) == {"rank": 0, "x": [1.5, None, "ä"]}
    with pytest.raises(UsageError, match=r"^the disk of process 0 is full$"):
        from_main(full_disk)
    own = {"m": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16), "n": torch.tensor(7), "none": torch.zeros(0, 3)}
    got = tensors_from_main(own if rank() == 0 else None)
    assert {name: (value.dtype, value.tolist()) for name, value in got.items()} == {
        "m": (torch.bfloat16, [[1.5, -2.0]]), "n": (torch.int64, 7), "none": (torch.float32, []),
    }  # fmt: skip
    assert got["none"].shape == (0, 3)


def full_disk() -> None:
    raise UsageError(f"the disk of process {rank()} is full")


def no_reply() -> None:
    """Process 1 never connects."""
    if rank() == 0:
        with pytest.raises(RuntimeError, match="process 0 of 2 cannot go on"):
            start(use_cpu=True, timeout=2)


def with_progress(folder: Path, output: Path) -> None:
    train("sft", folder, output, {"disable_tqdm": False})


def _rollout(first: int, last: int) -> Rollout:
    own = slice(first, last)
    rollout = Rollout.from_responses(
        PROMPTS[own], RESPONSES[own], finished=FINISHED[own], budget=3, score_at="eos+1",
        prompt_rows=list(range(first, last)), seeds=[100 + i for i in range(first, last)],
        logprobs=[[-float(token) for token in response] for response in RESPONSES[own]],
    )  # fmt: skip
    rollout.kl = rollout.labels.float() * 2
    rollout.bootstrap = torch.arange(first, last, dtype=torch.float32)
    rollout.ref_hidden = rollout.labels.float()[:, None].repeat(1, 2).abs() + 1
    return rollout
