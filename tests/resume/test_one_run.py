"""One run at a time writes an output folder; the lock goes with the process that holds it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import threading

import pytest

from rlhf_fast import UsageError
from rlhf_fast.runtime.output import LOCK, hold
from tests.forked import CONTEXT
from tests.resume.cases import STAGES, prepare, run
from tests.trainer.cases import trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("one_run"))


def hold_for_ever(output, held) -> None:
    with hold(output):
        held.set()
        threading.Event().wait()


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("stage", STAGES)
def test_a_second_run_in_one_folder_is_refused_before_it_changes_anything(folder, tmp_path, stage):
    (tmp_path / "metrics.jsonl").write_text("an earlier run's\n")
    with hold(tmp_path):
        before = contents(tmp_path)
        who = rf"another run is going on in output_dir='{tmp_path}': process {os.getpid()} on '{socket.gethostname()}'"
        with pytest.raises(UsageError, match=who):
            run(stage, folder, tmp_path)
        with pytest.raises(UsageError, match=who):
            run(stage, folder, tmp_path, resume="auto")
        assert contents(tmp_path) == before
    assert LOCK not in contents(tmp_path)


def test_the_trainer_is_refused_too_and_may_train_once_the_folder_is_free(tmp_path):
    one = trainer(tmp_path, options={"total_episodes": 8, "save_strategy": "no"})
    with hold(tmp_path), pytest.raises(UsageError, match="another run is going on"):
        one.train()
    assert one.ppo.iteration == 0
    one.train()
    assert one.ppo.iteration == 1 and LOCK not in contents(tmp_path)


def test_a_run_that_is_killed_frees_its_folder(tmp_path):
    held = CONTEXT.Event()
    process = CONTEXT.Process(target=hold_for_ever, args=(tmp_path, held), daemon=True)
    process.start()
    assert held.wait(120)
    with pytest.raises(UsageError, match=f"process {process.pid} on "), hold(tmp_path):
        pass
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert json.loads((tmp_path / LOCK).read_text()) == {"pid": process.pid, "host": socket.gethostname()}
    with hold(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_an_error_frees_the_folder_and_leaves_none_that_was_not_there(tmp_path):
    with pytest.raises(ValueError, match="stop"), hold(tmp_path / "a" / "b"):
        raise ValueError("stop")
    assert not list(tmp_path.iterdir())
    with hold(tmp_path / "a"):
        (tmp_path / "a" / "metrics.jsonl").write_text("")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["metrics.jsonl"]


def test_a_lock_that_another_run_took_away_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """The file is locked here just after the run before removed it: the lock of a file that has no name holds nobody
    off."""
    original, calls = fcntl.flock, []

    def late(descriptor, how):
        calls.append(how)
        if len(calls) == 1:
            (tmp_path / LOCK).unlink()
        original(descriptor, how)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", late)
        with hold(tmp_path):
            assert len(calls) == 2
            with pytest.raises(UsageError, match="another run is going on"), hold(tmp_path):
                pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog, code):
    def refuse(descriptor, how):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold(tmp_path):
        assert f"cannot be locked ([Errno {code}] {os.strerror(code)}): a second run" in caplog.text


def test_a_disk_that_refuses_the_lock_is_an_error_with_the_remedy(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(UsageError, match=r"cannot write .*run\.lock': No space left on device"), hold(tmp_path / "new"):
        pass
    assert not list(tmp_path.iterdir())
