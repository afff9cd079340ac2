"""A base whose layers are divided: the runs are those with the base in every process, and nobody waits for ever.

A hang ends a process after `ddp_timeout`, or `finish` kills it: then the exit codes are not 0.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlhf_fast import PPORunConfig, SFTConfig, UsageError
from tests.distributed import sharded
from tests.distributed.cases import finish, launch, metrics, printed, train, weights
from tests.distributed.test_runs import EVERYTHING, TRUNCATED
from tests.preferences.cases import write_rows
from tests.resume.cases import prepare

OPTIONS = {"ddp_timeout": 60}
TRUNK = {
    "sft_model_path": "base", "reward_model_path": None, "lora_layers": [1],  # no adapter on the first layer
    "loss_mean": "micro", "num_mini_batches": 8,
}  # fmt: skip
MICRO = {"loss_mean": "micro", "critic": "policy_head", "gradient_checkpointing": True, "lora_layers": [1]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With demonstrations and comparisons of unequal lengths beside those of equal ones."""
    folder = prepare(tmp_path_factory.mktemp("sharding"))
    words = [" ".join(f"w{(i + j) % 90}" for j in range(30 if i % 3 == 0 else 1)) for i in range(16)]
    write_rows(
        folder / "ragged.jsonl", [{"prompt": word, "completion": f"w{i} w{i + 1}"} for i, word in enumerate(words)]
    )
    pairs = [{"prompt": word, "chosen": f"w{i} w2", "rejected": f"w{i} w3"} for i, word in enumerate(words)]
    write_rows(folder / "ragged_pairs.jsonl", pairs)
    return folder


def same_bits(output: Path) -> None:
    wanted, got = weights(output / "replicated"), weights(output / "sharded")
    assert got.keys() == wanted.keys() and all(torch.equal(got[name], wanted[name]) for name in wanted)
    rows, others = metrics(output / "replicated"), metrics(output / "sharded")
    for row, other in zip(rows, others, strict=True):  # of what was sampled, which the weights do not depend on
        name = "rollout/logprob_mismatch"  # gathered layers lie elsewhere, and some libraries round by the address
        assert row.pop(name, 0.0) == pytest.approx(other.pop(name, 0.0), abs=1e-6)
    assert repr(others) == repr(rows) and len(rows) >= 3


@pytest.mark.parametrize(
    ("stage", "options", "world"),
    [
        ("sft", {}, 2), ("sft", {"gradient_checkpointing": True, "dtype": "bfloat16"}, 3),
        ("reward", {"normalise_samples": 2}, 3),
        ("ppo", {}, 2), ("ppo", EVERYTHING, 4), ("ppo", TRUNCATED, 2), ("ppo", MICRO, 2),
    ],
    ids=["sft", "sft-bfloat16-uneven", "reward", "ppo", "ppo-minibatches-of-two", "ppo-truncated", "ppo-micro"],
)  # fmt: skip
def test_a_run_with_divided_layers_is_the_run_with_the_whole_base(folder, tmp_path, stage, options, world):
    """Bit for bit. Three processes hold 11, 11 and 10 rows of a weight of 32, and one of them has no response to
    normalise with; of four, two have an empty minibatch."""
    log = tmp_path / "log"
    codes = finish(launch(world, sharded.both, stage, folder, tmp_path, OPTIONS | options, log=log))
    assert codes == [0] * world, "\n".join(printed(log, rank) for rank in range(world))
    same_bits(tmp_path)


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("sft", {"dataset_name": "ragged.jsonl", "eval_dataset_name": "ragged.jsonl"}),
        ("reward", {"dataset_name": "ragged_pairs.jsonl", "eval_dataset_name": "ragged_pairs.jsonl"}),
        ("ppo", {"dataset_name": "ragged.jsonl"}),
        ("ppo", {"dataset_name": "ragged.jsonl"} | TRUNK),
    ],
    ids=["sft", "reward", "ppo", "ppo-trunk-micro"],
)
def test_processes_with_unequal_numbers_of_micro_batches_keep_in_step(folder, tmp_path, stage, options):
    """Prompts of 30 words and of one; in minibatches of one response, a process has none of most."""
    log = tmp_path / "log"
    paths = {
        name: f"{folder}/{value}" if name.endswith(("path", "_name")) and value else value
        for name, value in options.items()
    }
    more = {"normalise_samples": 3} if stage == "reward" else {}
    codes = finish(launch(2, sharded.ragged, stage, folder, tmp_path, OPTIONS | paths | more, log=log))
    assert codes == [0, 0], printed(log, 0) + printed(log, 1)
    same_bits(tmp_path)


@pytest.mark.parametrize(
    "check", [sharded.shares, sharded.gathers, sharded.architectures], ids=lambda check: check.__name__
)
def test_a_process_holds_its_share_of_the_layers_and_computes_with_the_whole(folder, tmp_path, check):
    log = tmp_path / "log"
    assert finish(launch(2, check, folder, log=log)) == [0, 0], printed(log, 0) + printed(log, 1)


def test_a_run_with_divided_layers_goes_on_with_and_without(folder, tmp_path):
    """An iteration of each kind after another; the schedule is constant, so that the length changes nothing."""
    options = OPTIONS | {"lr_scheduler_type": "constant", "warmup_steps": 0, "save_steps": 1}
    output, log = tmp_path / "sharded", tmp_path / "log"
    assert finish(launch(2, train, "ppo", folder, tmp_path / "replicated", options, log=log)) == [0, 0]
    for episodes, shard in ((8, True), (16, True), (24, False)):
        more = {"total_episodes": episodes, "shard_base": shard, "resume": "auto"}
        assert finish(launch(2, train, "ppo", folder, output, options | more, log=log)) == [0, 0], printed(log, 0)
    same_bits(tmp_path)


@pytest.mark.parametrize("stage", ["reward", "ppo"])
def test_a_base_that_cannot_be_gathered_is_refused_before_the_run_begins(folder, tmp_path, stage):
    log = tmp_path / "log"
    assert finish(launch(2, sharded.without_room, stage, folder, tmp_path / "out", log=log)) == [1, 1]
    for rank in range(2):
        assert "process 1 has 1e-06 GB free on its cpu, and a rollout needs" in printed(log, rank)
        assert "of which a process holds 3.1e-05 of 6.2e-05 GB" in printed(log, rank)
    assert not list(tmp_path.glob("out/*"))


def test_processes_that_do_not_all_divide_the_base_say_so(folder, tmp_path):
    log = tmp_path / "log"
    assert finish(launch(2, sharded.sharded_in_one, folder, tmp_path / "out", log=log)) == [1, 1]
    assert "process 1 is of another run than process 0: shard_base is True, on process 0 False" in printed(log, 0)


def test_starts_that_cannot_divide_the_base_are_refused(monkeypatch):
    with pytest.raises(UsageError, match="shard_base=True cannot be used: expected False in a single process"):
        SFTConfig(use_cpu=True, shard_base=True)
    with pytest.raises(UsageError, match="unknown field 'fsdp' in PPORunConfig; use shard_base"):
        PPORunConfig(use_cpu=True, fsdp=True)
    monkeypatch.setattr("rlhf_fast.runtime.config.world_size", lambda: 2)
    with pytest.raises(UsageError, match="shard_base=True cannot be used: expected False with use_peft=False"):
        PPORunConfig(use_cpu=True, shard_base=True, use_peft=False)
    with pytest.raises(UsageError, match="auto_find_batch_size=True cannot be used: expected False with shard_base"):
        PPORunConfig(use_cpu=True, shard_base=True, auto_find_batch_size=True)
