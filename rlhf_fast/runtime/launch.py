"""Connecting the processes that a launcher started, and which of its starts are refused."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from rlhf_fast.runtime.distributed import exchange, is_main, processes_here, world_size
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.shown import show_notices

LAUNCHED = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # beside WORLD_SIZE


def start(*, use_cpu: bool, timeout: float) -> None:
    """Connect the processes until they end, choose each its GPU, and silence all but process 0, which shows notices.
    Later calls do nothing.

    timeout: seconds that an exchange waits for a process. Raises `UsageError` for a start that is not whole and for too
    few GPUs, `LostProcess` where a process does not come.
    """
    _refuse_one_of_several()
    show_notices()
    if world_size() == 1:
        return
    atexit.register(_disconnect)
    if dist.is_initialized():
        return
    _check_environment()
    gpus = torch.cuda.is_available() and not use_cpu
    if gpus:
        _choose_gpu()
    if processes_here() == world_size():  # nothing has to listen on the network
        for backend in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{backend}_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    with exchange():
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=timedelta(seconds=timeout))
    if not is_main():
        silence()


def silence() -> None:
    """Leave progress and warnings to process 0."""
    logging.getLogger("rlhf_fast").setLevel(logging.ERROR)
    set_verbosity_error()
    disable_progress_bar()


def _disconnect() -> None:
    """A process that ends connected may be aborted (gloo) or hold up the others (NCCL)."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _check_environment() -> None:
    if missing := [name for name in LAUNCHED if name not in os.environ]:
        raise UsageError(
            f"WORLD_SIZE is {world_size()} and {', '.join(missing)} not set: several processes are started by torchrun "
            "or accelerate launch, which set all of them. For a single process, unset WORLD_SIZE."
        )


def _refuse_one_of_several() -> None:
    """`accelerate launch` without --multi_gpu starts one process, or under MPI several that know nothing of another; it
    says where process 0 is, which it leaves out where one was asked for."""
    names = os.environ.keys()
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= names and "WORLD_SIZE" not in names:
        raise UsageError(
            "accelerate launch was asked for several processes and started each as the only one, as it does without "
            "--multi_gpu. Add --multi_gpu, on a CPU too (and use_cpu=True), or start them with torchrun."
        )


def _choose_gpu() -> None:
    gpus = torch.cuda.device_count()
    if processes_here() > gpus:
        raise UsageError(
            f"{processes_here()} processes were started on this node, which has {gpus} GPUs; expected one for each. "
            "Start fewer, or set use_cpu=True."
        )
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
