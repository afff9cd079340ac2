"""A run that is killed by SIGKILL, in the middle of writing a checkpoint too, is resumed and ends the same."""

from __future__ import annotations

import random

import pytest

from tests.resume.cases import prepare
from tests.resume.kills import Reference, kill_by_call, kill_by_time


@pytest.mark.parametrize(
    ("stage", "way", "seed"), [("sft", kill_by_time, 1), ("reward", kill_by_call, 2), ("ppo", kill_by_call, 3)]
)
def test_a_killed_run_that_is_resumed_ends_bit_for_bit_the_same(tmp_path, stage, way, seed):
    reference = Reference.of(stage, prepare(tmp_path))
    kill = way(reference, tmp_path / "killed", random.Random(seed))
    assert kill.same, kill
    assert kill.killed or way is kill_by_time  # a random time may be too late on a busy machine
