"""What a run shows: lines before it, progress on a terminal and elsewhere, and nothing where it should be quiet."""

from __future__ import annotations

import json
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from rlhf_fast.model.lora_choice import describe_trained, spans, train_only
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.runtime import memory, tracking
from rlhf_fast.runtime.device import describe_device
from rlhf_fast.runtime.launch import start
from rlhf_fast.runtime.memory import peak_bytes
from rlhf_fast.runtime.shown import notices, show_notices
from rlhf_fast.runtime.tracking import Tracker, activity, duration, say_start
from rlhf_kernels import extension
from tests import forked
from tests.model_cases import tiny_model
from tests.tiny_tokenizer import tiny_tokenizer

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def clock(monkeypatch):
    """Moves only when it is told to."""

    class Clock:
        now = 100.0

        def perf_counter(self) -> float:
            return self.now

    own = Clock()
    monkeypatch.setattr(tracking, "time", own)
    return own


def lines(capsys) -> list[str]:
    printed = capsys.readouterr()
    assert not printed.out
    return printed.err.splitlines()


def run(tmp_path, clock, steps: int, seconds: float, **options) -> None:
    with Tracker(tmp_path, "SFT", steps, {"loss": "loss"}, **options) as tracker:
        for step in range(options.get("done", 0) + 1, steps + 1):
            clock.now += seconds
            tracker.log(step, {"loss": 2.0 / step, "other": 1.0})


def test_elsewhere_than_on_a_terminal_there_is_a_line_for_each_tenth_of_the_steps(tmp_path, clock, capsys, monkeypatch):
    monkeypatch.setattr(tracking, "peak_bytes", lambda device: 1_234_000_000)
    run(tmp_path, clock, steps=40, seconds=1.5)
    said = lines(capsys)
    assert said[0] == "SFT: the first step took 1.5 s; memory so far: 1.23 GB at most; about 0:00:58 for the other 39"
    assert said[1] == "SFT 4 of 40 after 6.0 s, 0:00:54 left: loss 0.5"
    assert said[-1] == "SFT 40 of 40 after 0:01:00: loss 0.05" and len(said) == 11


def test_slow_steps_get_a_line_each_minute_and_the_time_left_is_known_after_the_first(tmp_path, clock, capsys):
    run(tmp_path, clock, steps=100, seconds=90)
    said = lines(capsys)
    assert said[0] == "SFT 1 of 100 after 0:01:30, 2:28:30 left: loss 2"
    assert "about 2:28:30 for the other 99" in said[1] and len(said) == 101


def test_steps_of_an_earlier_process_count_for_the_clock_and_not_for_the_time_left(tmp_path, clock, capsys):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 2, "seconds": 1000.0}) + "\n")
    run(tmp_path, clock, steps=4, seconds=5, done=2)
    said = lines(capsys)
    assert said[0] == "SFT 3 of 4 after 0:16:45, 5.0 s left: loss 0.667"
    assert said[1].endswith("about 5.0 s for the other 1")


def test_a_measurement_before_the_first_step_is_shown_and_does_not_count_as_time_of_steps(tmp_path, clock, capsys):
    with Tracker(tmp_path, "SFT", 4, {"loss": "loss", "eval_loss": "held out"}) as tracker:
        clock.now += 50
        tracker.log(0, {"eval_loss": 3.25})
        clock.now += 2
        tracker.log(1, {"loss": 3.0})
    said = lines(capsys)
    assert said[0] == "SFT 0 of 4 after 0:00:50: held out 3.25"
    assert said[1] == "SFT 1 of 4 after 0:00:52, 6.0 s left: loss 3"


@pytest.mark.parametrize("seconds", [1, 90])
def test_a_quiet_run_shows_nothing(tmp_path, clock, capsys, seconds):
    run(tmp_path, clock, steps=3, seconds=seconds, quiet=True)
    with activity("scoring", quiet=True):
        pass
    assert lines(capsys) == []
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_only_process_0_shows(tmp_path, clock, capsys, monkeypatch):
    monkeypatch.setattr(tracking, "is_main", lambda: False)
    run(tmp_path, clock, steps=3, seconds=1)
    with activity("scoring"):
        pass
    assert lines(capsys) == []


def test_lines_that_nobody_reads_do_not_end_a_run(tmp_path, monkeypatch):
    class Closed:
        def isatty(self) -> bool:
            return False

        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    with Tracker(tmp_path, "SFT", 1, {}) as tracker:
        tracker.log(1, {"loss": 1.0})
    assert (tmp_path / "metrics.jsonl").read_text().count("loss") == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.9, "9.9 s"), (9.96, "0:00:10"), (3725, "1:02:05"), (90000, "1 day, 1:00:00")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_peak_of_memory_is_the_systems_record_of_it(tmp_path, monkeypatch):
    (tmp_path / "status").write_text("VmPeak:\t  9000 kB\nVmHWM:\t  2000 kB\nVmRSS:\t  1000 kB\n")
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    monkeypatch.setattr(memory, "_earlier", {})
    assert peak_bytes(torch.device("cpu")) == peak_bytes(None) == 2_048_000
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    assert 1e7 < peak_bytes(None) < 1e12  # what is held now
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 77)
    assert peak_bytes(torch.device("cuda")) == 77


def test_where_it_is_computed():
    assert describe_device(torch.bfloat16, torch.device("cpu")) == "bfloat16 on cpu"


def test_what_is_trained():
    """A layer of the tiny Llama at rank 4: q and o 4 (32 + 32), k and v 4 (32 + 16), the other three 4 (32 + 48)."""
    layer = 2 * 4 * 64 + 2 * 4 * 48 + 3 * 4 * 80
    shared = SharedModel(tiny_model())
    shared.add_adapter("a", LoraConfig(r=4, target_modules="all-linear"), head=True)
    shared.add_adapter("b", LoraConfig(r=4, target_modules="all-linear"))
    said = [describe_trained(shared, "a", shared.named_parameters("a"))]
    train_only(shared, "b", [1])
    said.append(describe_trained(shared, "b", shared.named_parameters("b")))
    assert said == [
        f"LoRA r=4 on all 2 layers and a scalar head, {2 * layer + 33:,} trainable parameters",
        f"LoRA r=4 on layers 1 of 2, {layer:,} trainable parameters",
    ]
    full = SharedModel(tiny_model("gpt2"), train_base=True)  # tied: the embeddings count once
    block = 2 * 64 + 32 * 96 + 96 + 32 * 32 + 32 + 32 * 128 + 128 + 128 * 32 + 32
    count = (97 + 64) * 32 + 2 * block + 64
    assert describe_trained(full, None, full.base.named_parameters()) == f"all weights, {count:,} trainable parameters"


@pytest.mark.parametrize(("numbers", "text"), [([3], "3"), ([0, 1, 2, 7], "0 to 2, 7"), ([1, 3, 4], "1, 3 to 4")])
def test_spans(numbers, text):
    assert spans(numbers) == text


def test_the_start_is_a_notice(caplog):
    with caplog.at_level(logging.INFO, "rlhf_fast.notices"):
        say_start("SFT", {"Data": "3 rows", "Steps": "1 step"}, "few.")
        say_start("PPO", {"Data": "4 prompts"})
    assert [record.message for record in caplog.records] == ["SFT: 3 rows; 1 step", "few.", "PPO: 4 prompts"]
    assert {record.name for record in caplog.records} == {notices.name}


@pytest.fixture
def fresh(monkeypatch):
    """Logging as in a program that has not set it up."""
    root, before = logging.getLogger(), notices.level
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(notices, "handlers", [])
    notices.setLevel(logging.NOTSET)
    yield root
    notices.setLevel(before)


def say(text: str, capsys) -> list[str]:
    notices.info("%s", text)
    notices.warning("%s", text)
    return lines(capsys)


def test_a_program_that_has_not_set_up_logging_sees_notices_alone_and_then_decides_itself(fresh, capsys):
    fresh.handlers.clear()  # pytest's own
    show_notices(), show_notices()
    assert say("one", capsys) == ["one", "WARNING: one"]
    fresh.addHandler(logging.StreamHandler(sys.stderr))
    assert say("two", capsys) == ["two", "two"]  # the program's handler, once, and ours no more


def test_a_program_that_has_set_up_logging_is_left_as_it_is(fresh, capsys):
    fresh.handlers[:] = [logging.StreamHandler(sys.stderr)]
    show_notices()
    assert say("one", capsys) == ["one"]  # the warning: its root is at WARNING
    fresh.handlers.clear()
    notices.setLevel(logging.ERROR)
    show_notices()
    assert say("two", capsys) == []


def test_a_run_shows_notices(fresh, capsys):
    fresh.handlers.clear()
    start(use_cpu=True, timeout=60)
    assert say("one", capsys) == ["one", "WARNING: one"]


@pytest.fixture(scope="module")
def sft(tmp_path_factory) -> list[str]:
    """What `python -m` takes for a small run of SFT, without its output_dir."""
    folder = tmp_path_factory.mktemp("shown")
    tiny_model().save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    rows = [{"prompt": f"w{i} w{i + 1}", "completion": "w7 w8"} for i in range(23)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = f"rlhf_fast sft --model_name_or_path {folder}/base --dataset_name {folder}/rows.jsonl --use_cpu true"
    return [*words.split(), "--dtype", "float32"]


def test_a_command_in_a_pipe_prints_plain_lines_and_its_result_alone_on_stdout(sft, tmp_path):
    command = [*sft, "--output_dir", str(tmp_path / "out"), "--per_device_train_batch_size", "16"]
    done = forked.python(*command, environment={"FORCE_COLOR": "1"})
    assert done.returncode == 0 and done.stdout == f"{tmp_path / 'out'}\n"
    *_, start, few, step, first, last = done.stderr.splitlines()  # an example of the rows comes before
    assert start == (
        "SFT: 23 rows of 115 tokens, 69 of them learnt; 23 rows are 2 steps of 16 (the last of a pass: 7); LoRA r=16 "
        "on all 2 layers, 14,848 trainable parameters; float32 on cpu; micro-batches of 1,024 tokens, "
    ) + ("attention in torch, a sequence at a time" if extension.MISSING else "native attention")
    assert few.startswith("2 steps can change little")
    assert step.startswith("SFT 1 of 2 after ") and last.startswith("SFT 2 of 2 after ") and "memory" in first
    assert not set("\r\x1b") & set(done.stderr)


def test_a_command_on_a_terminal_has_a_bar_with_the_time_left(sft, tmp_path):
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", *sft, "--output_dir", str(tmp_path), "--per_device_train_batch_size", "8"]
    environment = ENVIRONMENT | {"TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=follower)
    os.close(follower)
    shown = b""
    try:
        while piece := os.read(leader, 4096):
            shown += piece
    except OSError:  # how Linux tells that the other side is closed
        pass
    out, _ = process.communicate()
    text = shown.decode()
    assert process.returncode == 0 and out.decode() == f"{tmp_path}\n"
    assert "3/3" in text and "━" in text and "\x1b[" in text and "SFT: the first step took" in text
    assert "Loading weights" not in text and "INFO" not in text


@pytest.mark.parametrize("arguments", [["--help"], ["sft", "--help"]])
def test_help_that_nobody_reads_on_ends_quietly(arguments):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "rlhf_fast", *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode in (0, 141) and done.stderr == b""  # argparse keeps it to itself
