"""A signal stops a run where its state is whole, and says so; what is resumed then ends as if nothing had been."""

from __future__ import annotations

import logging
import os
import signal
import threading

import pytest

import rlhf_fast.cli as cli
from rlhf_fast.runtime.checkpoint import list_checkpoints
from rlhf_fast.runtime.interrupt import Abandoned, Interrupted, asked, listening, stop_if_asked
from tests.resume.cases import outcome, prepare, run
from tests.resume.counting import count, names
from tests.resume.interrupts import start


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("interrupts"))


@pytest.mark.parametrize(
    ("stage", "place", "number", "step"),
    [("ppo", "rollout", signal.SIGTERM, 1), ("ppo", "update", signal.SIGINT, 3),
     ("ppo", "first update", signal.SIGINT, 1),
     ("sft", "sft micro-batch", signal.SIGINT, 1), ("reward", "reward micro-batch", signal.SIGTERM, 3)],
)  # fmt: skip
def test_a_signal_saves_the_run_which_then_ends_bit_for_bit_the_same(folder, tmp_path, stage, place, number, step):
    """A checkpoint is due after steps 2, 4 and 6: those of 1 and 3 are the signal's. PPO has optimised twice of four
    times when its update is given up."""
    stopped = start(stage, folder, tmp_path / "run", place, number)
    assert stopped.returncode == 128 + number, stopped.stderr
    newest = list_checkpoints(tmp_path / "run")[0]
    assert newest.name == f"checkpoint-{step}"
    assert f"stopped by {number.name} after step {step} of 6. {newest} is whole: go on with" in stopped.stdout
    assert "Ctrl-C (SIGINT) now stops it at once" in stopped.stderr
    run(stage, folder, tmp_path / "run", resume="auto")
    run(stage, folder, tmp_path / "whole")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_a_second_ctrl_c_stops_at_once(folder, tmp_path):
    stopped = start("ppo", folder, tmp_path, "update", signal.SIGINT, count=2)
    assert stopped.returncode == 130 and "after step" not in stopped.stdout
    assert names(tmp_path) == ["checkpoint-2"]


def test_sigterm_may_come_twice(folder, tmp_path):
    """As where a scheduler sends it to a launcher, which hands it on, and to its processes."""
    stopped = start("ppo", folder, tmp_path, "update", signal.SIGTERM, count=2)
    assert stopped.returncode == 143 and "stopped by SIGTERM after step 3" in stopped.stdout
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-2"]


def stop_at(monkeypatch, step: int) -> None:
    """A signal in that step of a run that only counts."""
    from tests.resume.counting import Counter

    original = Counter.step

    def counted(self):
        original(self)
        if self.count == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Counter, "step", counted)


def test_a_run_without_checkpoints_says_that_nothing_is_saved(tmp_path, monkeypatch):
    stop_at(monkeypatch, 3)
    with pytest.raises(Interrupted, match=r"after step 3 of 6\. There is no checkpoint, so the run has to start again"):
        count(tmp_path, save_strategy="no")
    assert names(tmp_path) == []


def test_a_signal_in_the_last_step_leaves_only_the_results_to_save(tmp_path, monkeypatch):
    stop_at(monkeypatch, 6)
    with pytest.raises(Interrupted, match="after step 6 of 6"):
        count(tmp_path)
    assert count(tmp_path, resume="auto").count == 6 and (tmp_path / "run.json").exists()


def test_the_command_line_ends_with_the_status_of_the_signal(monkeypatch, capsys):
    def stopped(config):
        raise Interrupted("stopped by SIGTERM after step 3 of 6.", signal.SIGTERM)

    monkeypatch.setattr(cli, "load", lambda path: cli.importlib.import_module(path.split(":")[0]).SFTConfig
                        if path.endswith("SFTConfig") else stopped)  # fmt: skip
    assert cli.main(["sft", "--use_cpu"]) == 143
    assert capsys.readouterr().err == "rlhf-fast sft: stopped by SIGTERM after step 3 of 6.\n"


def test_handlers_are_as_before_once_a_signal_has_asked(caplog):
    before, interrupt = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with listening():
        assert signal.getsignal(signal.SIGINT) != interrupt
        stop_if_asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked() is signal.SIGTERM and signal.getsignal(signal.SIGINT) == interrupt
        with pytest.raises(Abandoned):
            stop_if_asked()
    stop_if_asked()
    assert signal.getsignal(signal.SIGTERM) == before
    assert asked() is None and [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with listening():
            os.kill(os.getpid(), signal.SIGINT)
            assert asked() is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_in_another_thread_takes_no_signals():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def listen():
        with listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [before]
