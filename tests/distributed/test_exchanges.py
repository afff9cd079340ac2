"""What processes exchange, how the work is shared, and which starts are refused."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist

from rlhf_fast import EvaluateConfig, GenerateConfig, SFTConfig, UsageError, run_evaluate, run_generate, run_sft
from rlhf_fast.demo.config import DemoConfig
from rlhf_fast.demo.run import run_demo
from rlhf_fast.runtime import launch as launch_module
from rlhf_fast.runtime.distributed import main_only, own_share
from rlhf_fast.runtime.launch import start
from tests.distributed import checks
from tests.distributed.cases import finish, launch, printed


@pytest.mark.parametrize(
    "check", [checks.exchanges, checks.gradients, checks.rollouts, checks.from_process_0], ids=lambda c: c.__name__
)
def test_two_processes_see_the_same_sums_and_rows(tmp_path, check):
    codes = finish(launch(2, check, log=tmp_path / "log"))
    assert codes == [0, 0], printed(tmp_path / "log", 0) + printed(tmp_path / "log", 1)


def of(monkeypatch, rank: int, world: int) -> None:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": 1}
    for name, value in (numbers | {"MASTER_ADDR": "127.0.0.1"}).items():
        monkeypatch.setenv(name, str(value))


def test_shares_are_consecutive_and_differ_by_one_at_most(monkeypatch):
    shares = []
    for rank in range(3):
        of(monkeypatch, rank, 3)
        shares.append(list(own_share(range(8))))
    assert shares == [[0, 1], [2, 3, 4], [5, 6, 7]]


def test_a_single_process_has_everything_and_starts_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    start(use_cpu=True, timeout=1)
    assert not dist.is_initialized() and own_share([1, 2, 3]) == [1, 2, 3]


def test_only_process_0_does_what_is_for_one(monkeypatch):
    done = []
    for rank in range(2):
        of(monkeypatch, rank, 2)
        main_only(done.append)(rank)
    assert done == [0]


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("generate", lambda: run_generate(GenerateConfig(model_path="m", prompts=["p"]))),
        ("evaluate", lambda: run_evaluate(EvaluateConfig(model_path="m"))),
        ("demo", lambda: run_demo(DemoConfig())),
    ],
)
def test_stages_of_one_process_refuse_to_run_in_several(monkeypatch, name, run):
    of(monkeypatch, 0, 2)
    with pytest.raises(UsageError, match=f"{name} runs in one process and was started in 2. Start it without torchrun"):
        run()


def test_processes_that_no_launcher_started_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UsageError, match=r"WORLD_SIZE is 2 and RANK.* not set.*torchrun"):
        start(use_cpu=True, timeout=1)


def test_more_processes_on_a_node_than_it_has_gpus_are_refused(monkeypatch):
    """Eight processes on two nodes of two GPUs."""
    of(monkeypatch, 0, 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="4 processes were started on this node, which has 2 GPUs"):
        start(use_cpu=False, timeout=1)


def test_the_process_that_accelerate_starts_instead_of_several_is_refused(tmp_path, monkeypatch):
    """`accelerate launch --cpu --num_processes 2` starts one, with these variables."""
    for name, value in {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UsageError, match=r"several processes and started each as the only one.*Add --multi_gpu"):
        run_sft(SFTConfig(use_cpu=True, output_dir=str(tmp_path)))
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(UsageError, match="SFT needs model_name_or_path"):
        run_sft(SFTConfig(use_cpu=True, output_dir=str(tmp_path)))


@pytest.mark.parametrize(("here", "interface"), [("2", "lo"), ("1", None)])
def test_processes_of_one_node_do_not_listen_on_the_network(monkeypatch, here, interface):
    of(monkeypatch, 1, 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **kwargs: None)
    monkeypatch.setattr(launch_module, "silence", lambda: None)
    start(use_cpu=True, timeout=1)
    assert [os.environ.get(f"{name}_SOCKET_IFNAME") for name in ("GLOO", "NCCL")] == [interface, interface]
