"""A process that dies, stops or never comes ends the others with an error in time; the last checkpoint is whole."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from rlhf_fast.runtime.checkpoint import list_checkpoints, verify
from tests.distributed import checks
from tests.distributed.cases import finish, launch, printed
from tests.resume.cases import prepare


@pytest.mark.parametrize("shard", [False, True], ids=["whole-base", "divided-layers"])
@pytest.mark.parametrize(
    ("sent", "timeout", "within"), [(signal.SIGKILL, 600, 30), (signal.SIGSTOP, 5, 60)], ids=["killed", "stopped"]
)
def test_a_process_that_is_gone_ends_the_run_with_an_error(tmp_path, sent, timeout, within, shard):
    folder, output, log = prepare(tmp_path), tmp_path / "out", tmp_path / "log"
    processes = launch(2, checks.long_run, folder, output, timeout, shard, log=log)
    wait_for(output / "checkpoint-2", log)
    os.kill(int(processes[1].pid or 0), sent)
    sent_at = time.monotonic()
    processes[0].join(within)
    assert time.monotonic() - sent_at < within
    assert finish(processes, seconds=0) == [1, -signal.SIGKILL if sent == signal.SIGKILL else None]
    assert "LostProcess: process 0 of 2 cannot go on" in printed(log, 0) and "resume=auto" in printed(log, 0)
    newest, *_ = list_checkpoints(output)
    verify(newest)


def wait_for(path: Path, log: Path) -> None:
    until = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < until, printed(log, 0)
        time.sleep(0.05)


def test_a_process_that_never_comes_ends_the_others_with_an_error(tmp_path):
    log = tmp_path / "log"
    assert finish(launch(2, checks.no_reply, log=log)) == [0, 0], printed(log, 0)
