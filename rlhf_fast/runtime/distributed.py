"""Several processes: each takes its share of a batch, and what belongs to the whole batch is put together.

The processes are started by `torchrun` or `accelerate launch`, which number them (RANK) and count them (WORLD_SIZE);
`rlhf_fast.runtime.launch` connects them. Every process calls these functions at the same places; in a single process
they do nothing. Gloo exchanges what lies on a CPU, NCCL what lies on GPUs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlhf_fast.runtime.errors import UsageError

Item = TypeVar("Item")
Arguments = ParamSpec("Arguments")


class LostProcess(RuntimeError):
    """Another process ended, or did not come to an exchange in time."""


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def processes_here() -> int:
    """Number of processes on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world_size() > 1 else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this is the process that writes files and prints."""
    return rank() == 0


def main_only(function: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """`function` in process 0, nothing in the others."""

    @wraps(function)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        if is_main():
            function(*args, **kwargs)

    return run


def refuse_many(stage: str) -> None:
    """Raise `UsageError` where there are several processes: the stage would do all of its work in each."""
    if world_size() > 1:
        raise UsageError(
            f"{stage} runs in one process and was started in {world_size()}. Start it without torchrun or accelerate "
            "launch; sft, reward and ppo share their work among processes."
        )


def own_share(items: Sequence[Item]) -> Sequence[Item]:
    """This process's part of a list that all hold: consecutive items, as many for each as can be."""
    return items[len(items) * rank() // world_size() : len(items) * (rank() + 1) // world_size()]


def sum_over_processes(*numbers: float) -> list[float]:
    """The sum of each number over the processes, in float64."""
    if world_size() == 1:
        return list(numbers)
    return torch.stack(_all_gather(torch.tensor(numbers, dtype=torch.float64))).sum(0).tolist()


def max_over_processes(number: int) -> int:
    """The largest of the processes' numbers."""
    return max(int(other) for other in gather_parts(torch.tensor([number])))


def gather(x: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks; `x` (N, ...) may have another N in each."""
    return torch.cat(gather_parts(x))


def gather_parts(x: Tensor) -> list[Tensor]:
    """The `x` (N, ...) of each process."""
    if world_size() == 1:
        return [x]
    lengths = [int(length) for length in _all_gather(torch.tensor([len(x)]))]
    sent = x.new_zeros(max(lengths), *x.shape[1:], dtype=torch.uint8 if x.dtype == torch.bool else x.dtype)
    sent[: len(x)] = x
    return [part[:length].to(x.dtype) for part, length in zip(_all_gather(sent), lengths, strict=True)]


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its sum over the processes, in one exchange in float32.

    A process without a gradient adds zero; where none has one, none gets one.
    """
    if world_size() == 1:
        return
    device = parameters[0].device
    present = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.float32, device=device)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([present, *(gradient.float().flatten() for gradient in gradients)])
    with exchange():
        dist.all_reduce(flat)
    present, *sums = flat.split([len(parameters), *(parameter.numel() for parameter in parameters)])
    for parameter, count, summed in zip(parameters, present.tolist(), sums, strict=True):
        parameter.grad = summed.view_as(parameter).to(parameter.dtype) if count else None


def from_main(function: Callable[[], Item]) -> Item:
    """What `function` gives in process 0, sent to all: what lies in files has to be seen by that one only.

    It has to be such that JSON gives it back. A `UsageError` that it raises there is raised in every process.
    """
    if world_size() == 1:
        return function()
    answer: dict[str, Any] = {}
    if is_main():
        try:
            answer = {"value": function()}
        except UsageError as error:
            answer = {"error": str(error)}
    text = torch.frombuffer(bytearray(json.dumps(answer).encode()), dtype=torch.uint8)
    answer = json.loads(bytes(gather_parts(text)[0].tolist()))  # no pickle: JSON runs no code
    if "error" in answer:
        raise UsageError(answer["error"])
    return answer["value"]


def tensors_from_main(tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The tensors of process 0, on the CPU; what the others give is not looked at."""
    if world_size() == 1:
        return tensors or {}
    own = tensors if is_main() and tensors is not None else {}
    kinds: dict[str, Any] = from_main(lambda: {name: [list(x.shape), str(x.dtype)] for name, x in own.items()})
    received: dict[str, Tensor] = {}
    for name, (shape, dtype) in kinds.items():
        empty = torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
        received[name] = own[name].cpu().contiguous() if name in own else empty
        with exchange():
            dist.broadcast(received[name].reshape(-1).view(torch.uint8), src=0)
    return received


def wait_for_all() -> None:
    """Return once every process has come here."""
    sum_over_processes(0)


def _all_gather(x: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(x) for _ in range(world_size())]
    with exchange():
        dist.all_gather(parts, x.contiguous())
    return parts


@contextmanager
def exchange() -> Iterator[None]:
    """Raise `LostProcess` where torch's engine cannot complete what runs inside."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise LostProcess(
            f"process {rank()} of {world_size()} cannot go on: another one ended, or did not come to an exchange "
            f"within ddp_timeout ({reason}). What that one printed says why."
        ) from error
