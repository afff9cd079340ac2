"""Small runs of a stage in several processes of this machine, connected as torchrun connects them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from rlhf_fast import FunctionReward, run_ppo, run_reward, run_sft
from rlhf_fast.runtime.tracking import read_metrics
from tests.forked import CONTEXT
from tests.resume.cases import config

BATCH, STEPS = 8, 3
STAGES = ("sft", "reward", "ppo")


def launch(
    world: int, work: Callable[..., None], *args: Any, log: Path, nodes: Path | None = None
) -> list[multiprocessing.process.BaseProcess]:
    """Start `work(*args)` in `world` processes; what rank r prints is appended to `log`-r.

    nodes: each process is then a node of its own, which works in the folder `nodes`/r.
    """
    port = free_port()
    processes = [CONTEXT.Process(target=_run, args=(r, world, port, log, nodes, work, args)) for r in range(world)]
    for process in processes:
        process.start()
    return processes


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def finish(processes: list[multiprocessing.process.BaseProcess], seconds: float = 120) -> list[int | None]:
    """Exit codes, None for a process that still runs after that time; it is killed then."""
    for process in processes:
        process.join(seconds)
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    return codes


def printed(log: Path, rank: int) -> str:
    return Path(f"{log}-{rank}").read_text()


def train(stage: str, folder: Path, output: Path, options: dict[str, Any]) -> None:
    """A run of `STEPS` steps with `BATCH` rows each, however many processes there are."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    passes = {} if stage == "ppo" else {"num_train_epochs": STEPS * BATCH / 16}  # of 16 rows
    episodes = {"total_episodes": STEPS * BATCH, "whiten_rewards": True} if stage == "ppo" else {}
    settings = config(
        stage, folder, output,
        **({"per_device_train_batch_size": BATCH // world, "learning_rate": 1e-3, "max_tokens_per_micro_batch": 24}
           | passes | episodes | options),
    )  # fmt: skip
    if stage == "ppo":
        run_ppo(settings, [(FunctionReward("even", even), 1.0)])
    else:
        {"sft": run_sft, "reward": run_reward}[stage](settings)


def even(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    """The share of words with an even number."""
    return [sum(w[-1] in "02468" for w in r.split()) / max(1, len(r.split())) for r in responses]


def weights(output: Path) -> dict[str, torch.Tensor]:
    files = sorted(output.glob("*.safetensors"))
    return {f"{file.name} {name}": value for file in files for name, value in load_file(file).items()}


def metrics(output: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(output)]


def _run(
    rank: int, world: int, port: int, log: Path, nodes: Path | None, work: Callable[..., None], args: tuple[Any, ...]
) -> None:
    """In the child. An exception ends it with status 1 and is in the log."""
    own = os.open(f"{log}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(own, sys.stdout.fileno())
    os.dup2(own, sys.stderr.fileno())
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    if nodes is not None:
        folder = nodes / str(rank)
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        numbers |= {"LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # on Linux; else the interface that this machine's name leads to
    os.environ |= {name: str(number) for name, number in numbers.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    work(*args)
