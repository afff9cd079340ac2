"""A process that dies, hangs or never comes ends the others with an error in time; the run is saved as of its last
step."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from rlhf_fast.runtime.checkpoint import list_checkpoints, read_facts, verify
from tests.distributed import checks
from tests.distributed.cases import BATCH, finish, launch, printed
from tests.resume.cases import prepare


@pytest.mark.parametrize("shard", [False, True], ids=["whole-base", "divided-layers"])
@pytest.mark.parametrize(
    ("sent", "timeout", "within"), [(signal.SIGKILL, 600, 30), (signal.SIGSTOP, 5, 60), (signal.SIGTERM, 600, 30)],
    ids=["killed", "hanging", "asked to stop"],
)  # fmt: skip
def test_a_process_that_is_gone_ends_the_others_with_an_error_and_the_run_is_saved(
    tmp_path, sent, timeout, within, shard
):
    folder, output, log = prepare(tmp_path), tmp_path / "out", tmp_path / "log"
    processes = launch(2, checks.long_run, folder, output, timeout, shard, log=log)
    wait_for_steps(3, output, log)
    os.kill(int(processes[1].pid or 0), sent)
    sent_at = time.monotonic()
    processes[0].join(within)
    assert time.monotonic() - sent_at < within
    codes = {signal.SIGKILL: -signal.SIGKILL, signal.SIGSTOP: None, signal.SIGTERM: 1}
    assert finish(processes, seconds=5) == [1, codes[sent]]
    assert "LostProcess: process 0 of 2 cannot go on" in printed(log, 0)
    assert_saved_as_of_the_last_step(output, printed(log, 0))


def test_processes_that_are_all_asked_to_stop_save_the_run(tmp_path):
    folder, output, log = prepare(tmp_path), tmp_path / "out", tmp_path / "log"
    processes = launch(2, checks.long_run, folder, output, 600, False, log=log)
    wait_for_steps(3, output, log)
    for process in processes:
        os.kill(int(process.pid or 0), signal.SIGTERM)
    assert finish(processes, seconds=30) == [1, 1]
    assert "stopped by SIGTERM after step" in printed(log, 0)
    assert_saved_as_of_the_last_step(output, printed(log, 0))


def assert_saved_as_of_the_last_step(output: Path, said: str) -> None:
    """The checkpoint is of the step whose metrics were written last, and holds the rollouts up to it."""
    (saved,) = list_checkpoints(output)
    verify(saved)
    steps = len((output / "metrics.jsonl").read_text().splitlines())
    assert saved.name == f"checkpoint-{steps}" and f"{saved} is whole: go on with" in said
    rollouts = (output / "rollouts.jsonl").read_bytes()[: read_facts(saved)["rollouts"]["bytes"]]
    assert [json.loads(row)["iteration"] for row in rollouts.splitlines()] == [
        step for step in range(1, steps + 1) for _ in range(BATCH)
    ]


def wait_for_steps(steps: int, output: Path, log: Path) -> None:
    until = time.monotonic() + 120
    while not (output / "metrics.jsonl").exists() or (output / "metrics.jsonl").read_text().count("\n") < steps:
        assert time.monotonic() < until, printed(log, 0)
        time.sleep(0.05)


def test_a_process_that_never_comes_ends_the_others_with_an_error(tmp_path):
    log = tmp_path / "log"
    assert finish(launch(2, checks.no_reply, log=log)) == [0, 0], printed(log, 0)
