"""`rlhf-fast bench`: its numbers from given times, what its fields do, and that the report does not say whose it is."""

from __future__ import annotations

import getpass
import json
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rlhf_fast.bench import machine as machine_module
from rlhf_fast.bench import run, timing
from rlhf_fast.bench.config import BenchConfig
from rlhf_fast.bench.machine import machine, machine_facts
from rlhf_fast.bench.timing import COPIED, Case, Work
from rlhf_fast.cli import main
from rlhf_fast.profiling.memory_table import MemoryTable
from rlhf_fast.profiling.rates import SIDE
from rlhf_fast.train.ppo import PPO

CPU = torch.device("cpu")


def config(tmp_path, **options) -> BenchConfig:
    return BenchConfig(output_dir=str(tmp_path), quick=True, **({"rounds": 1, "iterations": 1} | options))


def test_a_row_is_the_median_of_the_ratios_within_a_round(monkeypatch):
    """Ours takes 2, 4 and 3 s, the other 4, 4 and 12: ratios 2, 1 and 4. The floor takes 1 s. With a product and a copy
    of 1 s the work, half of them, takes half a second: 25, 12.5 and 16.7 % of ours."""
    found = {
        "ours": [2.0, 4.0, 3.0], "other": [4.0, 4.0, 12.0], "floor": [1.0] * 3, "product": [1.0] * 3, "copy": [1.0] * 3,
    }  # fmt: skip
    monkeypatch.setattr(timing, "interleave", lambda variants, rounds: {name: found[name] for name in variants})
    nothing: Callable[[], object] = lambda: None  # noqa: E731
    case = Case("op", "1 x 1", Work(SIDE["cpu"] ** 3, COPIED), {"ours": nothing, "other": nothing}, "ours", nothing)
    ours, other = timing.measure(case, rounds=3)
    assert (ours.times_ours, other.times_ours) == (1.0, 2.0)
    assert (ours.times_floor, other.times_floor) == (3.0, 4.0)
    assert ours.percent_of_limit == pytest.approx(100 / 6) and other.percent_of_limit == 12.5
    assert (ours.milliseconds, other.milliseconds) == (3000, 4000)


def test_the_report_holds_the_kernels_and_the_engine_and_not_whose_machine_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "--quick", "--rounds", "1", "--iterations", "1", "--output_dir", "out", "--use_cpu"]) == 0
    assert capsys.readouterr().out.strip() == str(Path("out", "bench.html"))
    page, facts = (Path("out", name).read_text() for name in ("bench.html", "bench.json"))
    for private in (
        platform.node(),
        str(tmp_path),
        str(Path.home()),
        f"{getpass.getuser()}@",
        str(Path(__file__).parent),
    ):
        assert private not in page + facts
    found = json.loads(facts)
    assert {row["op"] for row in found["kernels"]} == set(run.OPERATIONS)
    assert all(row["milliseconds"] > 0 and row["rounds"] == 1 for row in found["kernels"])
    assert all(row["times_ours"] == 1 for row in found["kernels"] if row["variant"] == found["kernels"][0]["variant"])
    engine = found["engine"]
    assert list(engine["phases"]) == ["rollout", "trunk", "scoring", "update"]
    sampled = engine["rows"] * engine["new"] / engine["phases"]["rollout"]["seconds"]
    assert engine["sampled_tokens_per_second"] == pytest.approx(sampled)
    memory = MemoryTable.from_json(engine["memory"])
    assert {"load", "rollout decode", "optimiser step"} <= set(memory.phases)
    assert memory.bytes["scoring"]["shared base"] >= engine["parameters"] * 2
    assert "https:" not in page and "<script" not in page


@pytest.mark.parametrize("asked", [1, 2])
def test_iterations_are_timed_after_one_that_is_not(tmp_path, monkeypatch, asked):
    steps, step = [], PPO.step
    monkeypatch.setattr(PPO, "step", lambda self: steps.append(1) or step(self))
    run.measure_engine(config(tmp_path, iterations=asked), CPU)
    assert len(steps) == 1 + asked


@pytest.mark.parametrize("asked", [False, True])
def test_torch_compile_is_measured_where_it_is_asked_for(tmp_path, monkeypatch, asked):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    rows = run.measure_kernels("ppo_loss", config(tmp_path, torch_compile=asked, rounds=2), "cpu")
    assert ("torch.compile" in {row.variant for row in rows}) == asked
    assert {row.rounds for row in rows} == {2} and {row.shape for row in rows} == {"4 x 32"}


def test_full_shapes_are_those_of_the_published_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "measure", lambda case, rounds, device: [case.shape])
    shapes = run.measure_kernels("gae_and_whiten", BenchConfig(output_dir=str(tmp_path)), "cpu")
    assert shapes == ["16 x 1024", "256 x 512"]


def test_a_machine_without_a_list_of_processors_has_a_name_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(machine_module, "CPUINFO", tmp_path / "none")
    assert machine_facts(3)["processor"] == (platform.processor() or platform.machine())
    assert "3 threads" in machine(3, "cpu")


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_measured(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["bench", "--output_dir", str(tmp_path / "file" / "out")]) == 2
    assert "output_dir=" in capsys.readouterr().err
