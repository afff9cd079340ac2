"""The launchers themselves, with the commands that docs/distributed.md gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forked
from tests.distributed.cases import free_port, metrics, weights
from tests.distributed.test_runs import same_metrics
from tests.resume.cases import prepare

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]  # what the command torchrun runs
SFT = [
    "rlhf_fast", "sft", "--output_dir", "out", "--num_train_epochs", "1.5", "--use_cpu", "true",
    "--disable_tqdm", "true", "--dtype", "float32", "--lora_r", "4", "--learning_rate", "1e-3",
    "--max_tokens_per_micro_batch", "24",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Models and data, and in the folder `one` a run of one process in batches of 8."""
    folder = prepare(tmp_path_factory.mktemp("launchers"))
    one = folder / "one" / "0"
    one.mkdir(parents=True)
    done = forked.python(*SFT, *rows_of(folder, 8), folder=one)
    assert done.returncode == 0, done.stderr
    return folder


def rows_of(folder: Path, rows: int) -> list[str]:
    data = ["--model_name_or_path", f"{folder}/base", "--dataset_name", f"{folder}/demonstrations.jsonl"]
    return [*data, "--per_device_train_batch_size", str(rows)]


def run(launchers: list[list[str]], folder: Path, nodes: Path, rows: int) -> None:
    """SFT by each of `launchers`, the k-th in the working folder `nodes`/k; all have to end well."""
    path = f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = []
    for k, launcher in enumerate(launchers):
        (nodes / str(k)).mkdir(parents=True)
        processes.append(
            subprocess.Popen(
                [*launcher, "-m", *SFT, *rows_of(folder, rows)], cwd=nodes / str(k), env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
    try:
        for process in processes:
            printed, _ = process.communicate(timeout=120)
            assert process.returncode == 0, printed
    finally:
        for process in processes:
            process.kill()


def same_run(one: Path, other: Path) -> None:
    wanted, got = weights(one), weights(other)
    assert got.keys() == wanted.keys()
    assert max(float((wanted[name] - got[name]).abs().max()) for name in wanted) < 1e-6
    same_metrics(metrics(other), metrics(one))


def test_torchrun_starts_the_processes_of_a_run(folder, tmp_path):
    run([[*TORCHRUN, "--standalone", "--nproc-per-node", "2"]], folder, tmp_path, rows=4)
    same_run(folder / "one" / "0" / "out", tmp_path / "0" / "out")


@pytest.mark.slow
def test_accelerate_starts_the_processes_of_a_run(folder, tmp_path):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    launcher += ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"]
    run([launcher], folder, tmp_path, rows=4)
    same_run(folder / "one" / "0" / "out", tmp_path / "0" / "out")


@pytest.mark.slow
def test_a_torchrun_on_each_node_starts_the_processes_of_a_run(folder, tmp_path):
    """The files are on the node of process 0."""
    nodes = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    run([[*TORCHRUN, *nodes, "--node-rank", rank] for rank in "01"], folder, tmp_path, rows=4)
    same_run(folder / "one" / "0" / "out", tmp_path / "0" / "out")
    assert not list((tmp_path / "1").iterdir())


def test_processes_that_end_are_connected_no_more(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import atexit, os\n"
        "import torch.distributed as dist\n"
        "atexit.register(lambda: os._exit(3 if dist.is_initialized() else 0))  # the last of what an exit calls\n"
        "from rlhf_fast.runtime.launch import start\n"
        "start(use_cpu=True, timeout=60)\n"
        "assert dist.is_initialized()\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    command = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
