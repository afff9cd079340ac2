"""The same run in 1, 2 and 4 processes, with the same batch in all: one result, up to rounding."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed import checks
from tests.distributed.cases import STEPS, finish, launch, metrics, printed, train, weights
from tests.preferences.cases import write_rows
from tests.resume.cases import prepare

EVERYTHING = {
    "critic": "reference_mlp", "num_mini_batches": 4, "old_logprobs": "sampled", "score_at": "eos+1",
    "entropy_coef": 0.01, "kl_target": None,
}  # fmt: skip
RAGGED = {"dataset_name": "nine.jsonl", "num_train_epochs": 2.0}  # of which a pass is a step of 8 and one of 1
TRUNCATED = {"bootstrap_truncated": True, "missing_eos_penalty": 1.0, "lora_layers": [1], "target_kl": 1e-6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = prepare(tmp_path_factory.mktemp("distributed"))
    write_rows(folder / "others.jsonl", [{"prompt": f"w{i}", "completion": f"w{i + 1}"} for i in range(16)])
    rows = [{"prompt": f"w{i} w{i + 1}", "completion": "w7 " * (i + 1)} for i in range(9)]
    write_rows(folder / "nine.jsonl", rows)
    return folder


@pytest.mark.parametrize(
    ("stage", "options", "worlds"),
    [
        ("sft", {}, (2,)),
        ("sft", RAGGED, (2,)),
        ("reward", {}, (2,)),
        ("ppo", {}, (2, 4)),
        ("ppo", EVERYTHING, (4,)),
        ("ppo", TRUNCATED, (2,)),
    ],
    ids=["sft", "sft-last-step-of-one-row", "reward", "ppo", "ppo-minibatches-of-two", "ppo-truncated"],
)
def test_a_run_in_several_processes_is_the_run_in_one(folder, tmp_path, stage, options, worlds):
    """Minibatches of two rows in four processes leave two processes without any; steps of one row in two, one."""
    options = options | {name: str(folder / options[name]) for name in ("dataset_name",) if name in options}
    train(stage, folder, tmp_path / "1", options)
    wanted, rows = weights(tmp_path / "1"), metrics(tmp_path / "1")
    train(stage, folder, tmp_path / "slower", options | {"learning_rate": 5e-4})
    slower = weights(tmp_path / "slower")
    assert max(float((wanted[name] - slower[name]).abs().max()) for name in wanted) > 1e-4  # training moves them
    for world in worlds:
        output, log = tmp_path / str(world), tmp_path / f"log{world}"
        codes = finish(launch(world, train, stage, folder, output, options, log=log))
        assert codes == [0] * world, printed(log, 0)
        got = weights(output)
        assert got.keys() == wanted.keys()
        assert max(float((wanted[name] - got[name]).abs().max()) for name in wanted) < 1e-5
        same_metrics(metrics(output), rows)


def same_metrics(got: list[dict[str, float]], wanted: list[dict[str, float]]) -> None:
    assert len(got) == len(wanted) >= STEPS
    for one, other in zip(got, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 4)])
def test_a_run_goes_on_in_another_number_of_processes(folder, tmp_path, before, after):
    """Two iterations, then the third; the schedule is constant, so that the length of the run changes nothing."""
    options = {"lr_scheduler_type": "constant", "warmup_steps": 0, "save_steps": 1}
    train("ppo", folder, tmp_path / "whole", options)
    output = tmp_path / "parts"
    for world, more in ((before, {"total_episodes": 16}), (after, {"resume": "auto"})):
        log = tmp_path / f"log{world}"
        codes = finish(launch(world, train, "ppo", folder, output, options | more, log=log))
        assert codes == [0] * world, printed(log, 0)
    same_metrics(metrics(output), metrics(tmp_path / "whole"))
    wanted, got = weights(tmp_path / "whole"), weights(output)
    assert max(float((wanted[name] - got[name]).abs().max()) for name in wanted) < 1e-5


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("config", "process 1 is of another run than process 0: learning_rate is 0.5, on process 0 0.001"),
        ("resume", "process 1 is of another run than process 0: resume is 'auto', on process 0 None"),
        ("data", "process 1 is of another run than process 0: contents of the data is"),
        ("weights", "process 1 is of another run than process 0: the initial weights is"),
    ],
)
def test_processes_of_different_runs_say_which_and_what(folder, tmp_path, what, message):
    log = tmp_path / "log"
    assert finish(launch(2, checks.another_run, folder, tmp_path / "out", what, log=log)) == [1, 1]
    assert all(message in printed(log, rank) for rank in range(2))
    assert not list(tmp_path.glob("out/*"))


def test_process_0_alone_prints(folder, tmp_path):
    log = tmp_path / "log"
    assert finish(launch(2, checks.with_progress, folder, tmp_path / "out", log=log)) == [0, 0]
    assert "SFT" in printed(log, 0)
    assert "SFT" not in printed(log, 1)
