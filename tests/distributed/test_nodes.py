"""Several nodes with working folders of their own: process 0 reads and writes, and the run is that of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_fast.runtime.checkpoint import list_checkpoints
from tests.distributed.cases import finish, launch, metrics, printed, train, weights
from tests.distributed.test_runs import same_metrics
from tests.resume.cases import prepare

CONSTANT = {"lr_scheduler_type": "constant", "warmup_steps": 0, "save_steps": 1}  # a longer run changes nothing before
LENGTH = {"sft": {"num_train_epochs": 1.0}, "reward": {"num_train_epochs": 1.0}, "ppo": {"total_episodes": 16}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return prepare(tmp_path_factory.mktemp("nodes"))


def on_nodes(stage: str, folder: Path, nodes: Path, options: dict[str, object], log: Path) -> list[int | None]:
    return finish(launch(2, train, stage, folder, Path("out"), options, log=log, nodes=nodes))


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_a_run_on_two_nodes_goes_on_there_and_ends_as_in_one_process(folder, tmp_path, stage):
    """Cut off after two of three steps; the second node has no file of the run."""
    options = CONSTANT | ({"eval_dataset_name": None} if stage == "sft" else {})  # it is read at the end of a run
    train(stage, folder, tmp_path / "one", options)
    log, nodes = tmp_path / "log", tmp_path / "nodes"
    assert on_nodes(stage, folder, nodes, options | LENGTH[stage], log) == [0, 0], printed(log, 0)
    assert on_nodes(stage, folder, nodes, options | {"resume": "auto"}, log) == [0, 0], printed(log, 0)
    wanted, got = weights(tmp_path / "one"), weights(nodes / "0" / "out")
    assert got.keys() == wanted.keys()
    assert max(float((wanted[name] - got[name]).abs().max()) for name in wanted) < 1e-5
    same_metrics(metrics(nodes / "0" / "out"), metrics(tmp_path / "one"))
    assert not list((nodes / "1").iterdir())
    assert on_nodes(stage, folder, nodes, options | {"resume": "auto"}, log) == [0, 0]  # it is finished: on both


def test_a_checkpoint_that_only_another_node_holds_is_not_passed_over(folder, tmp_path):
    """As when the nodes are started in another order."""
    log, nodes = tmp_path / "log", tmp_path / "nodes"
    assert on_nodes("sft", folder, nodes, CONSTANT, log) == [0, 0]
    (nodes / "0" / "out").rename(nodes / "1" / "out")
    assert on_nodes("sft", folder, nodes, CONSTANT | {"resume": "auto"}, log) == [1, 1]
    for rank in range(2):
        assert "process 1 sees checkpoint-3 in out, and process 0, which reads and writes that" in printed(log, rank)
    assert list_checkpoints(nodes / "1" / "out") and not list((nodes / "0").iterdir())
