"""Checkpoints on disk: a damaged one is told and passed over, an interrupted write leaves nothing, the best stay."""

from __future__ import annotations

import errno
import json
import os
import random

import numpy
import pytest
import torch
from torch import nn

from rlhf_fast.model.load import load_shared
from rlhf_fast.runtime.checkpoint import DamagedCheckpoint, list_checkpoints, read_checkpoint
from rlhf_fast.runtime.config import StageConfig
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.optimiser import Optimiser
from rlhf_fast.runtime.random_state import RandomState
from rlhf_fast.runtime.resume import choose_start
from rlhf_fast.runtime.saving import Checkpoints
from rlhf_fast.runtime.state import State
from rlhf_fast.runtime.tracking import Tracker
from tests.resume.cases import prepare, run


class Counter:
    """A part of a run that counts its steps, in a number and in a tensor."""

    def __init__(self) -> None:
        self.count, self.vector = 0, torch.zeros(3)

    def step(self) -> None:
        self.count += 1
        self.vector += 1

    def state(self) -> State:
        return State({"vector": self.vector}, {"count": self.count})

    def load_state(self, state: State) -> None:
        self.count = state.facts["count"]
        self.vector = state.tensors["vector"].clone()


def count(output, steps: int = 6, *, losses=(0.5,) * 6, until: int | None = None, **options) -> Counter:
    """A run that only counts; `until` leaves it unfinished after that step."""
    config = StageConfig(output_dir=str(output), use_cpu=True, save_steps=1, **options)
    counter = Counter()
    start = choose_start(config, {})
    checkpoints = Checkpoints(
        config, start, steps, {"counter": counter}, lambda folder: (folder / "model").write_text("m")
    )
    with Tracker(output, "count", steps, {}, done=checkpoints.done, quiet=True) as tracker:
        for step in checkpoints.remaining():
            counter.step()
            tracker.log(step, {"loss": losses[step - 1]})
            checkpoints.after(step, {"loss": losses[step - 1]})
            if step == until:
                return counter
    checkpoints.finish()
    return counter


def names(output) -> list[str]:
    return [path.name for path in list_checkpoints(output)]


def cut_in_half(path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_a_byte(path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


DAMAGES = [
    ("state.safetensors", change_a_byte, "state.safetensors is not what was written"),
    ("state.safetensors", cut_in_half, "state.safetensors is not what was written"),
    ("state.json", change_a_byte, "state.json is not what was written"),
    ("model", change_a_byte, "model is not what was written"),
    ("metrics.jsonl", os.unlink, "metrics.jsonl is missing"),
    ("manifest.json", cut_in_half, "its manifest.json cannot be read"),
    ("manifest.json", os.unlink, "it has no manifest.json"),
    (
        "manifest.json",
        lambda path: path.write_text('{"sha256": {}}'),
        "its manifest.json does not name metrics.jsonl, state.json",
    ),
]


@pytest.mark.parametrize(("name", "damage", "reason"), DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(tmp_path, caplog, name, damage, reason):
    count(tmp_path, until=4)
    damage(tmp_path / "checkpoint-4" / name)
    with pytest.raises(DamagedCheckpoint, match=reason):
        read_checkpoint(tmp_path / "checkpoint-4")
    counter = count(tmp_path, resume="auto")
    (record,) = caplog.records
    assert f"{tmp_path / 'checkpoint-4'} is damaged: {reason}" in record.message
    assert record.message.endswith("checkpoint-3 is used instead")
    assert counter.count == 6 and counter.vector.tolist() == [6, 6, 6]
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").open()] == [1, 2, 3, 4, 5, 6]


def test_a_run_whose_checkpoints_are_all_damaged_says_so_and_starts_from_the_beginning(tmp_path, caplog):
    count(tmp_path, until=4)
    for path in list_checkpoints(tmp_path):
        change_a_byte(path / "state.safetensors")
    assert count(tmp_path, resume="auto").count == 6
    assert len(caplog.records) == 2
    assert all("there is no whole one, so the run starts from the beg" in record.message for record in caplog.records)


def test_a_damaged_checkpoint_given_by_its_path_is_refused(tmp_path):
    count(tmp_path, until=4)
    change_a_byte(tmp_path / "checkpoint-4" / "state.safetensors")
    with pytest.raises(UsageError, match=r"cannot be used: state\.safetensors is not what was written"):
        count(tmp_path, resume=str(tmp_path / "checkpoint-4"))


def test_a_full_disk_stops_the_run_with_the_remedy_and_leaves_older_checkpoints(tmp_path, monkeypatch):
    count(tmp_path, until=2)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            count(tmp_path, resume="auto")
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-1"]
    with monkeypatch.context() as patch:
        fails = iter([os.fsync, os.fsync, full])  # two for metrics.jsonl, then the checkpoint's first file
        patch.setattr(os, "fsync", lambda descriptor: next(fails)(descriptor))
        with pytest.raises(UsageError, match=r"checkpoint-3': .*No space left on device\. Older checkpoints are whole"):
            count(tmp_path, resume="auto")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2", "metrics.jsonl"]
    assert count(tmp_path, resume="auto").count == 6


def test_leftovers_of_an_interrupted_write_are_cleaned(tmp_path):
    count(tmp_path, until=2)
    (tmp_path / ".checkpoint-3.tmp").mkdir()
    (tmp_path / ".checkpoint-3.tmp" / "state.safetensors").write_text("half")
    count(tmp_path, until=2 + 1, resume="auto")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3", "metrics.jsonl"]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [6, 5]),
        ({"save_total_limit": 1}, [6]),
        ({"save_total_limit": None}, [6, 5, 4, 3, 2, 1]),
        ({"metric_for_best_model": "loss"}, [6, 5, 2]),
        ({"metric_for_best_model": "loss", "greater_is_better": True}, [6, 5, 3]),
    ],
)
def test_the_newest_checkpoints_and_the_best_are_kept(tmp_path, options, kept):
    losses = (0.5, 0.1, 0.9, float("nan"), 0.1, 0.8)  # the earlier of equal ones is the best; NaN never is
    count(tmp_path / "whole", losses=losses, **options)
    assert names(tmp_path / "whole") == [f"checkpoint-{step}" for step in kept]
    count(tmp_path / "resumed", losses=losses, until=4, **options)
    count(tmp_path / "resumed", losses=losses, resume="auto", **options)
    assert names(tmp_path / "resumed") == names(tmp_path / "whole")


def test_a_metric_that_no_step_has_is_named_at_the_first_step(tmp_path):
    with pytest.raises(UsageError, match="metric_for_best_model='accuracy' is no metric of a step; there are: loss"):
        count(tmp_path, metric_for_best_model="accuracy")


def test_checkpoints_come_every_save_steps_and_at_the_end(tmp_path):
    run("sft", prepare(tmp_path), tmp_path / "a", save_steps=4, save_total_limit=None)
    assert names(tmp_path / "a") == ["checkpoint-6", "checkpoint-4"]
    run("sft", tmp_path, tmp_path / "b", save_steps=0.4, save_total_limit=None)  # of 6 steps: every 3
    assert names(tmp_path / "b") == ["checkpoint-6", "checkpoint-3"]
    run("sft", tmp_path, tmp_path / "c", save_strategy="no")
    assert names(tmp_path / "c") == []
    shared, adapter = load_shared(str(tmp_path / "a" / "checkpoint-4"), dtype=torch.float32)  # opens as a model
    assert adapter == "sft" and any(bool(p.any()) for k, p in shared.named_parameters("sft") if "lora_B" in k)
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("*.pkl"))


def test_the_random_generators_go_on_where_they_were():
    def draw() -> list[float]:
        numbers = [random.random(), random.gauss(0, 1), numpy.random.standard_normal(), float(torch.randn(()))]
        return [*numbers, float(numpy.random.random())]

    draw()  # leaves the second half of a pair of Gaussian numbers in two of the generators
    saved = RandomState().state()
    saved = State(saved.tensors, json.loads(json.dumps(saved.facts)))
    expected = draw()
    draw()
    RandomState().load_state(saved)
    assert draw() == expected


def test_parameters_of_another_shape_are_refused():
    def build(*shape: int) -> Optimiser:
        config = StageConfig(output_dir="unused", use_cpu=True)
        return Optimiser.build(config, [("w", nn.Parameter(torch.ones(*shape)))], 1)

    with pytest.raises(UsageError, match="the model is not the one"):
        build(1, 3).load_state(build(2, 3).state())
