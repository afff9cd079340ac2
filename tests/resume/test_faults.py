"""What stops a run from within: numbers that are not finite, a disk that is full, memory that is not enough."""

from __future__ import annotations

import errno
import itertools
import math
import os
import re
import shutil
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import torch

from rlhf_fast import UsageError
from rlhf_fast.model.batches import MicroBatches
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.preferences.fit import RewardTraining
from rlhf_fast.runtime import checkpoint, memory, phases
from rlhf_fast.runtime.checkpoint import list_checkpoints, verify
from rlhf_fast.runtime.errors import NotWritten, StepFailed
from rlhf_fast.runtime.files import Lines
from rlhf_fast.runtime.memory import explain, is_out_of_memory
from rlhf_fast.runtime.optimiser import Optimiser
from rlhf_fast.runtime.saving import Checkpoints
from rlhf_fast.train.ppo import PPO
from rlhf_fast.train.sft import SFT
from tests.model_cases import tiny_model
from tests.resume.cases import STAGES, outcome, prepare, run
from tests.resume.counting import Counter, count, names


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_whose_gradients_are_not_finite_is_saved_and_stopped_and_may_try_again(
    folder, tmp_path, monkeypatch, stage
):
    """From the third optimiser step on, each is skipped; PPO takes four in an iteration, and ends the second."""
    original, calls = Optimiser.advance, []

    def advance(self, loss, norm):
        calls.append(loss)
        return original(self, loss if len(calls) < 3 else math.nan, norm)

    after = 2 if stage == "ppo" else 5
    with monkeypatch.context() as patch:
        patch.setattr(Optimiser, "advance", advance)
        with pytest.raises(UsageError, match=rf"optimiser steps in a row.*loss nan.*checkpoint-{after} is whole"):
            run(stage, folder, tmp_path)
    verify(tmp_path / f"checkpoint-{after}")
    run(stage, folder, tmp_path, resume="auto")
    assert outcome(tmp_path)["metrics"][-1]["step"] == 6


def test_skipped_steps_at_the_very_end_stop_a_run_too(folder, tmp_path, monkeypatch):
    original, calls = Optimiser.step, []

    def step(self, loss):
        calls.append(loss)
        return original(self, loss if len(calls) <= 3 else math.inf)

    monkeypatch.setattr(Optimiser, "step", step)
    with pytest.raises(UsageError, match=r"3 optimiser steps in a row.*checkpoint-6 is whole"):
        run("sft", folder, tmp_path)
    assert not (tmp_path / "run.json").exists()


def full_after(monkeypatch, appends: int) -> None:
    """The disk takes so many lines, and half of the next."""
    original, calls = Lines.append, []

    class Full:
        def __init__(self, file) -> None:
            self.file, self.first = file, True

        def write(self, data):
            if self.first:
                self.first = False
                return self.file.write(bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

    def append(self, rows):
        calls.append(rows)
        if len(calls) <= appends:
            return original(self, rows)
        file, self.file = self.file, Full(self.file)
        try:
            return original(self, rows)
        finally:
            self.file = file

    monkeypatch.setattr(Lines, "append", append)


def test_a_disk_that_is_full_when_metrics_are_written_is_said_and_the_last_checkpoint_is_whole(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        full_after(patch, 3)
        with pytest.raises(UsageError, match=r"metrics\.jsonl': No space left on device\. Make room.*checkpoint-3 is"):
            count(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text()[-1] != "\n"
    assert count(tmp_path, resume="auto").count == 6
    assert [row.count('"step"') for row in (tmp_path / "metrics.jsonl").open()] == [1] * 6


def test_a_disk_that_is_full_when_rollouts_are_written_is_said_and_the_run_goes_on_the_same(
    folder, tmp_path, monkeypatch
):
    """Lines are rollouts and metrics by turns: the fifth are the rollouts of iteration 3."""
    with monkeypatch.context() as patch:
        full_after(patch, 4)
        with pytest.raises(UsageError, match=r"rollouts\.jsonl': No space left on device.*checkpoint-2 is whole"):
            run("ppo", folder, tmp_path / "full")
    run("ppo", folder, tmp_path / "full", resume="auto")
    run("ppo", folder, tmp_path / "whole")
    assert outcome(tmp_path / "full") == outcome(tmp_path / "whole")


def test_a_disk_that_is_full_when_the_results_are_saved_is_said(folder, tmp_path, monkeypatch):
    def refuse(self, folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        original = Checkpoints.save_results
        patch.setattr(
            Checkpoints, "save_results", lambda self: (setattr(self, "save", refuse.__get__(self)), original(self))
        )
        with pytest.raises(UsageError, match=r"cannot write the results to .*No space left.*checkpoint-6 is whole"):
            run("sft", folder, tmp_path)
    run("sft", folder, tmp_path, resume="auto")
    assert (tmp_path / "adapter_model.safetensors").exists()


WRITES = [
    (os, "fsync"), (os, "replace"), (os, "open"), (Path, "write_text"), (Path, "mkdir"), (checkpoint, "save_file"),
    (shutil, "copyfile"), (shutil, "rmtree"), (Lines, "cut"),
]  # fmt: skip


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize(("owner", "name"), WRITES, ids=[name for _, name in WRITES])
def test_whichever_write_the_disk_refuses_the_run_says_so_and_goes_on_from_the_checkpoint_before(
    tmp_path, monkeypatch, owner, name, code
):
    """Checkpoints, metrics, results and run.json of a small run, written with each call of each function that reaches
    the disk failing once: never a bare OSError, and the run goes on and ends as ever."""
    for call in itertools.count(1):
        calls, original = [], getattr(owner, name)

        def fail(*arguments, call=call, calls=calls, original=original, **options):
            calls.append(name)
            if len(calls) != call:
                return original(*arguments, **options)
            error = OSError(code, os.strerror(code))
            if owner is Lines:
                error = NotWritten(f"cannot write: {error.strerror}.")
            raise error

        output = tmp_path / str(call)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            try:
                count(output, steps=2)
            except UsageError as error:
                assert os.strerror(code) in str(error)
        for path in list_checkpoints(output):
            verify(path)
        assert count(output, steps=2, resume="auto").count == 2 or (output / "run.json").exists()
        assert len((output / "metrics.jsonl").read_text().splitlines()) == 2
        assert {"model", "run.json"} <= {path.name for path in output.iterdir()}
        assert not list(output.glob(".*"))
        if len(calls) < call:
            assert call > 1
            return


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("name", ["reward_model.json", "run.json", "adapter_model.safetensors", "tokenizer.json"])
def test_results_that_the_disk_refuses_are_saved_by_a_resume(folder, tmp_path, monkeypatch, name, code):
    """The reward model writes all kinds: weights, a tokenizer, a record of its own and run.json."""
    original = os.replace

    def replace(source, target):
        if Path(target) == tmp_path / name:
            raise OSError(code, os.strerror(code))
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(UsageError, match=rf"{os.strerror(code)}.*checkpoint-6 is whole: go on"):
            run("reward", folder, tmp_path)
    assert not (tmp_path / "run.json").exists()
    run("reward", folder, tmp_path, resume="auto")
    assert (tmp_path / name).exists() and (tmp_path / "run.json").exists() and not list(tmp_path.glob(".*"))


def cut_the_end(path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty_the_header(path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(("damage", "reason"), [(cut_the_end, r"bytes of the \d+"), (empty_the_header, "header")])
def test_results_that_are_not_what_was_written_are_not_called_finished(folder, tmp_path, monkeypatch, damage, reason):
    original = Checkpoints.save_results

    def save_results(self):
        original(self)
        damage(tmp_path / "adapter_model.safetensors")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save_results", save_results)
        with pytest.raises(UsageError, match=rf"cannot finish the run in .*{reason}.*checkpoint-6 is whole"):
            run("sft", folder, tmp_path)
    assert not (tmp_path / "run.json").exists()
    run("sft", folder, tmp_path, resume="auto")
    assert (tmp_path / "run.json").exists()


def test_a_run_is_called_finished_once_the_disk_holds_its_results(folder, tmp_path, monkeypatch):
    events = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(f"to {b}"), replace(a, b)))
    run("ppo", folder, tmp_path, save_strategy="no")
    end = events.index(f"to {tmp_path / 'run.json'}")
    for name in ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "ppo.json"):
        named = events.index(f"to {tmp_path / name}")
        assert events.index(str(tmp_path / ".results.tmp" / name)) < named < end
        assert str(tmp_path) in events[named:end]
    assert events.index(str(tmp_path / "rollouts.jsonl")) < end and events.index(str(tmp_path / "metrics.jsonl")) < end
    assert events[end + 1] == str(tmp_path)


def test_rollouts_that_do_not_reach_the_disk_stop_the_run_before_the_checkpoint_that_counts_them(
    folder, tmp_path, monkeypatch
):
    """They are synced before each iteration and for each checkpoint: the sixth time is for checkpoint-4."""
    sync, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(os.readlink(f"/proc/self/fd/{descriptor}").endswith("rollouts.jsonl"))
        if calls[-1] and sum(calls) == 6:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        wanted = r"rollouts\.jsonl': Input/output error\. Check the disk and the rights.*checkpoint-2 is whole: go on"
        with pytest.raises(UsageError, match=wanted):
            run("ppo", folder, tmp_path)
    assert names(tmp_path) == ["checkpoint-2"]
    run("ppo", folder, tmp_path, resume="auto")
    assert outcome(tmp_path)["metrics"][-1]["step"] == 6


def test_a_line_the_disk_refuses_does_not_fail_again_when_the_file_is_closed(tmp_path, monkeypatch):
    lines = Lines(tmp_path / "x.jsonl")
    full_after(monkeypatch, 1)
    lines.append([{"a": 1}])
    with pytest.raises(NotWritten, match=r"x\.jsonl': No space left on device"):
        lines.append([{"b": 2}])
    lines.close()
    assert (tmp_path / "x.jsonl").read_text().startswith('{"a": 1}\n')


def out_of_memory() -> None:
    """As torch says it on a CPU: 4 EB."""
    torch.empty(1 << 60, dtype=torch.float32)


def fail_at(monkeypatch, owner, name: str, call: int) -> None:
    """That call of the method runs out of memory."""
    original, calls = getattr(owner, name), []

    def method(self, *arguments, **options):
        calls.append(name)
        if len(calls) == call:
            out_of_memory()
        return original(self, *arguments, **options)

    monkeypatch.setattr(owner, name, method)


@pytest.mark.parametrize(
    ("stage", "owner", "name", "call", "step"),
    [("sft", SFT, "loss", 5, 3), ("reward", RewardTraining, "loss", 4, 3),
     ("ppo", PPO, "loss", 15, 3)],
)  # fmt: skip
def test_a_run_out_of_memory_says_what_was_held_and_what_helps(
    folder, tmp_path, monkeypatch, stage, owner, name, call, step
):
    with monkeypatch.context() as patch:
        fail_at(patch, owner, name, call)
        with pytest.raises(UsageError) as error:
            run(stage, folder, tmp_path)
    text = str(error.value)
    where, models = ("in update forward: ", "shared base") if stage == "ppo" else (": ", "models and adapters")
    assert re.match(rf"out of memory ?{where}.*can't allocate memory", text)
    held = {name: float(size) for name, size in re.findall(r"^  (.*\S) +(\d+\.\d) MB$", text, re.M)}
    assert held.pop("all else: activations of a micro-batch, and the process itself", 1000) > 100
    assert {models, "optimiser"} <= held.keys() and 0 < held[models] < 10
    assert "Lower max_tokens_per_micro_batch" in text
    assert f"{tmp_path / f'checkpoint-{step}'} is whole: go on" in text
    run(stage, folder, tmp_path, resume="auto", max_tokens_per_micro_batch=30)
    assert outcome(tmp_path)["metrics"][-1]["step"] == 6


def test_a_whole_model_whose_update_was_given_up_is_not_saved_half_updated(folder, tmp_path, monkeypatch):
    """Of all weights there is no copy. In iteration 4 the first minibatch fails before anything is changed, in another
    run the third does, after two optimiser steps."""
    for call, step in ((13, 3), (15, 2)):
        with monkeypatch.context() as patch:
            fail_at(patch, PPO, "accumulate", call)
            with pytest.raises(UsageError, match=rf"(?s)out of memory.*checkpoint-{step} is whole: go on"):
                run("ppo", folder, tmp_path / str(call), use_peft=False, sft_model_path=f"{folder}/base")


def too_large_above(monkeypatch, name: str, tokens: int) -> None:
    """Of what the function `name` runs, micro-batches of more tokens than that do not fit: they fail once their
    gradients are there."""
    original = MicroBatches._once

    def once(self, model, cut, work, *rest):
        out = original(self, model, cut, work, *rest)
        if work.__qualname__.startswith(name) and self.tokens > tokens:
            out_of_memory()
        return out

    monkeypatch.setattr(MicroBatches, "_once", once)


@pytest.mark.parametrize(
    ("stage", "name"),
    [("sft", "SFT.loss"), ("reward", "RewardTraining.accumulate"), ("ppo", "PPO.accumulate"),
     ("ppo", "score_rollout")],
)  # fmt: skip
def test_a_micro_batch_that_does_not_fit_is_halved_and_the_run_ends_as_one_with_the_half(
    folder, tmp_path, monkeypatch, caplog, stage, name
):
    options = {"auto_find_batch_size": True, "save_strategy": "no"}
    with monkeypatch.context() as patch:
        too_large_above(patch, name, 25)
        run(stage, folder, tmp_path / "halved", max_tokens_per_micro_batch=96, **options)
    run(stage, folder, tmp_path / "half", max_tokens_per_micro_batch=24, **options)
    said = [record.message for record in caplog.records if "half from now on" in record.message]
    assert ["with 96 tokens" in said[0], "with 48 tokens" in said[1], len(said)] == [True, True, 2]
    one, two = outcome(tmp_path / "halved"), outcome(tmp_path / "half")
    assert one["metrics"][-1]["max_tokens_per_micro_batch"] == 24
    assert one["metrics"][-1]["grad_norm"] == pytest.approx(two["metrics"][-1]["grad_norm"], rel=1e-3)
    assert one["metrics"][-1]["lr"] == two["metrics"][-1]["lr"] and len(one["metrics"]) == len(two["metrics"])


def test_only_what_ran_out_of_memory_is_run_again():
    undone, cuts, model = [], [], SharedModel(tiny_model())
    cut = MicroBatches(64, may_halve=True, clear_gradients=lambda: undone.append(1))

    def run(micro_batches, work):
        return micro_batches.run(model, lambda tokens: cuts.append(tokens) or [1, 2], work, spare=0)

    assert run(cut, lambda part, weight: part * weight) == [1.0, 2.0]
    with pytest.raises(RuntimeError, match="shapes differ"):
        run(cut, lambda part, weight: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="allocate memory"):
        run(MicroBatches(64), lambda part, weight: out_of_memory())
    assert undone == [] and cut.tokens == 64 and cuts == [64] * 3
    with pytest.raises(RuntimeError, match="allocate memory"):
        run(cut, lambda part, weight: out_of_memory())
    assert cut.tokens == 1 and len(undone) == 6 and cuts[3:] == [64, 32, 16, 8, 4, 2, 1]


def test_what_counts_as_out_of_memory():
    with pytest.raises(RuntimeError) as cpu:
        out_of_memory()
    assert is_out_of_memory(cpu.value) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError()) and not is_out_of_memory(RuntimeError("shapes differ"))


@pytest.mark.parametrize(
    ("phase", "part", "culprit", "remedy"),
    [
        (None, None, "activations of a micro-batch", "Lower max_tokens_per_micro_batch"),
        ("scoring", None, "activations of a micro-batch", "set activation_checkpointing"),
        ("rollout", "rollout decode", "keys and values of a rollout", "max_kv_cache_gb"),
        ("update", "update backward", "activations of a micro-batch", "Lower max_tokens_per_micro_batch"),
        ("update", "optimiser step", "the optimiser's moments", "a smaller adapter"),
    ],
)
def test_out_of_memory_is_explained_by_the_part_it_came_from(monkeypatch, phase, part, culprit, remedy):
    """Of 9 GB that the process has, 3.0005 are named: the rest is what that part takes."""
    monkeypatch.setattr(memory, "resident_bytes", lambda: 9 * 10**9)
    phases.forget()
    with suppress(MemoryError), nullcontext() if phase is None else phases.phase(phase):
        if part is not None:
            phases.at(part)
        raise MemoryError
    text = explain(MemoryError(), {"b": 5 * 10**5, "a": 3 * 10**9, "none": 0})
    first, one, two, rest, then = text.splitlines()
    assert first == f"out of memory{f' in {part or phase}' if phase else ''}: MemoryError. Held then:"
    assert one.split() == ["a", "3.00", "GB"] and two.split() == ["b", "0.5", "MB"]
    assert rest.startswith(f"  all else: {culprit}") and rest.endswith(" 6.00 GB")
    assert remedy in then


def test_a_new_run_does_not_take_over_the_phase_that_failed_before(tmp_path):
    with suppress(MemoryError), phases.phase("rollout"):
        raise MemoryError
    assert phases.current() == "rollout"
    count(tmp_path)
    assert phases.current() is None


def test_an_error_that_is_a_bug_is_not_dressed_up(tmp_path, monkeypatch):
    def broken(self):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Counter, "step", broken)
    with pytest.raises(RuntimeError, match=r"^shapes differ$"):
        count(tmp_path)


def test_a_step_that_failed_before_it_changed_anything_leaves_the_checkpoint_of_the_one_before(tmp_path, monkeypatch):
    """Checkpoints would be of steps 3 and 6."""
    original = Counter.step

    def step(self):
        if self.count == 4:
            raise StepFailed("no answer.")
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Counter, "step", step)
        with pytest.raises(UsageError, match=r"no answer\. .*checkpoint-4 is whole"):
            count(tmp_path, save_steps=3)
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-3"]
    assert count(tmp_path, save_steps=3, resume="auto").count == 6


def test_a_first_step_that_failed_has_nothing_to_save(tmp_path, monkeypatch):
    def step(self):
        raise StepFailed("no answer.")

    monkeypatch.setattr(Counter, "step", step)
    with pytest.raises(UsageError, match=r"no answer\. There is no checkpoint, so the run has to start again\."):
        count(tmp_path)
    assert names(tmp_path) == []
