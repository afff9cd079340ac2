"""Checkpoints on disk: a damaged one is told and passed over, an interrupted write leaves nothing."""

from __future__ import annotations

import errno
import json
import os
import random

import numpy
import pytest
import torch
from torch import nn

from rlhf_fast.runtime.checkpoint import DamagedCheckpoint, RandomState, State, list_checkpoints, verify
from rlhf_fast.runtime.config import StageConfig
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.optimiser import Optimiser
from rlhf_fast.runtime.saving import Checkpoints
from tests.resume.counting import Counter, count, names


def cut_in_half(path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_a_byte(path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


FILES = {"state.safetensors", "state.json", "metrics.jsonl", "manifest.json", "model"}
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
        verify(tmp_path / "checkpoint-4")
    counter = count(tmp_path, resume="auto")
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
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
        fails = iter([os.fsync, os.fsync, full])  # two for metrics.jsonl, then the checkpoint's first file
        patch.setattr(os, "fsync", lambda descriptor: next(fails)(descriptor))
        with pytest.raises(
            UsageError, match=r"checkpoint-3': .*No space left on device\. Make room\. Older checkpoints"
        ):
            count(tmp_path, resume="auto")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2", "metrics.jsonl"]
    assert count(tmp_path, resume="auto").count == 6


def test_a_checkpoint_gets_its_name_once_the_disk_holds_its_files(tmp_path, monkeypatch):
    """Every file, then their folder; then the name; then the folder that holds the name."""
    events = []
    sync, replace = os.fsync, os.replace

    def synced(descriptor):
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        assert not (tmp_path / "checkpoint-1").exists() or events[-1] == str(tmp_path)
        sync(descriptor)

    def replaced(source, target):
        events.append(f"{source} -> {target}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    count(tmp_path, until=1)
    temporary = tmp_path / ".checkpoint-1.tmp"
    files = {str(temporary / name) for name in FILES}
    assert set(events[: len(FILES)]) == files
    assert events[len(FILES) :] == [str(temporary), f"{temporary} -> {tmp_path / 'checkpoint-1'}", str(tmp_path)]
    assert {path.name for path in (tmp_path / "checkpoint-1").iterdir()} == FILES


def test_leftovers_of_an_interrupted_write_are_cleaned(tmp_path):
    count(tmp_path, until=2)
    (tmp_path / ".checkpoint-9.tmp").mkdir()
    (tmp_path / ".checkpoint-9.tmp" / "state.safetensors").write_text("half")
    count(tmp_path, until=3, resume="auto")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3", "metrics.jsonl"]


def test_only_what_is_ours_by_name_is_cleaned(tmp_path):
    count(tmp_path, until=2)
    ours = [".checkpoint-9.tmp", ".results.tmp"]
    others = [".checkpoint-old.tmp", ".notes.tmp", "checkpoint-2.tmp", ".checkpoint-9.tmp.keep"]
    for name in ours + others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("half")
    (tmp_path / ".run.json.tmp").write_text("half")
    (tmp_path / ".metrics.jsonl.tmp").write_text("half")
    (tmp_path / ".draft.json.tmp").write_text("somebody's")
    (tmp_path / ".checkpoint-8.tmp").symlink_to(tmp_path / ".notes.tmp")
    count(tmp_path, until=3, resume="auto")
    kept = {*others, ".draft.json.tmp", ".checkpoint-8.tmp", "checkpoint-2", "checkpoint-3", "metrics.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert (tmp_path / ".notes.tmp" / "file").read_text() == "half"


def test_checkpoints_over_the_limit_that_a_kill_left_go_at_the_next_start(tmp_path, monkeypatch):
    """Killed between the writing of checkpoint-4 and the removal of checkpoint-2."""
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_prune", lambda self: None)
        count(tmp_path, until=4)
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-3", "checkpoint-2", "checkpoint-1"]
    left = []
    with monkeypatch.context() as patch:
        patch.setattr(Counter, "step", lambda self: left.append(names(tmp_path)) or _step(self))
        count(tmp_path, until=5, resume="auto")
    assert left == [["checkpoint-4", "checkpoint-3"]]


_step = Counter.step


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


def test_only_the_gpu_of_the_process_has_its_generator_saved(monkeypatch):
    """So a run may go on where there are fewer GPUs, and no process touches another's. Stands in for a GPU."""
    generators = {0: torch.tensor([5], dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: generators[0])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state: generators.update({0: state}))
    saved = RandomState().state()
    generators[0] = torch.tensor([9], dtype=torch.uint8)
    RandomState().load_state(saved)
    assert generators[0].tolist() == [5]
    del saved.tensors["cuda"]  # by a run on a CPU
    RandomState().load_state(saved)
    assert generators[0].tolist() == [5]


def test_parameters_of_another_shape_are_refused():
    def build(*shape: int) -> Optimiser:
        config = StageConfig(output_dir="unused", use_cpu=True)
        return Optimiser.build(config, [("w", nn.Parameter(torch.ones(*shape)))], 1)

    with pytest.raises(UsageError, match="the model is not the one"):
        build(1, 3).load_state(build(2, 3).state())
