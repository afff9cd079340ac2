"""Several processes of one node: each takes its share of a batch, and what belongs to the whole batch is put together.

The processes are started by `torchrun` or `accelerate launch`, which number them (RANK) and count them (WORLD_SIZE).
Models are replicated. Every process calls these functions at the same places; in a single process they do nothing.
Gloo exchanges what lies on a CPU, NCCL what lies on GPUs.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from rlhf_fast.runtime.errors import UsageError

Item = TypeVar("Item")
Arguments = ParamSpec("Arguments")


class LostProcess(RuntimeError):
    """Another process ended, or did not come to an exchange in time."""


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


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


def start(*, use_cpu: bool, timeout: float) -> None:
    """Connect the processes, choose each its GPU, and silence all but process 0. Later calls do nothing.

    timeout: seconds that an exchange waits for a process. Raises `UsageError` for several nodes and too few GPUs,
    `LostProcess` where a process does not come.
    """
    if dist.is_initialized() or world_size() == 1:
        return
    _check_environment()
    gpus = torch.cuda.is_available() and not use_cpu
    if gpus:
        _choose_gpu()
    for backend in ("GLOO", "NCCL"):  # all processes are on this node: nothing has to listen on its network
        os.environ.setdefault(f"{backend}_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    with _exchange():
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=timedelta(seconds=timeout))
    if not is_main():
        logging.getLogger("rlhf_fast").setLevel(logging.ERROR)
        set_verbosity_error()
        disable_progress_bar()


def stop() -> None:
    """Disconnect the processes; NCCL wants that before they end."""
    if dist.is_initialized():
        dist.destroy_process_group()


def share(items: Sequence[Item]) -> Sequence[Item]:
    """This process's part of a list that all hold: consecutive items, as many for each as can be."""
    return items[len(items) * rank() // world_size() : len(items) * (rank() + 1) // world_size()]


def total(*numbers: float) -> list[float]:
    """The sum of each number over the processes, in float64."""
    if world_size() == 1:
        return list(numbers)
    return torch.stack(_all_gather(torch.tensor(numbers, dtype=torch.float64))).sum(0).tolist()


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
    with _exchange():
        dist.all_reduce(flat)
    present, *sums = flat.split([len(parameters), *(parameter.numel() for parameter in parameters)])
    for parameter, count, summed in zip(parameters, present.tolist(), sums, strict=True):
        parameter.grad = summed.view_as(parameter).to(parameter.dtype) if count else None


def wait_for_all() -> None:
    """Return once every process has come here."""
    total(0)


def _all_gather(x: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(x) for _ in range(world_size())]
    with _exchange():
        dist.all_gather(parts, x.contiguous())
    return parts


@contextmanager
def _exchange() -> Iterator[None]:
    """Raise `LostProcess` where torch's engine cannot complete what runs inside."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise LostProcess(
            f"process {rank()} of {world_size()} cannot go on: another one ended, or did not come to an exchange "
            f"within ddp_timeout ({reason}). What that one printed says why."
        ) from error


def _check_environment() -> None:
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is {world_size()} and {', '.join(missing)} not set: several processes are started by torchrun "
            "or accelerate launch, which set all of them. For a single process, unset WORLD_SIZE."
        )
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    if here != world_size():
        raise UsageError(
            f"{here} of {world_size()} processes are on this node; expected all of them: several nodes cannot be used."
        )


def _choose_gpu() -> None:
    here, gpus = int(os.environ.get("LOCAL_RANK", rank())), torch.cuda.device_count()
    if world_size() > gpus:
        raise UsageError(
            f"{world_size()} processes were started and there are {gpus} GPUs; expected one for each. Start fewer, or "
            "set use_cpu=True."
        )
    torch.cuda.set_device(here)
