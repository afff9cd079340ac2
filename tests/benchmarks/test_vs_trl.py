"""The comparison with TRL: what is reported from given numbers, what a job is, and that both sides run."""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks import environments
from benchmarks.vs_trl import __main__ as vs_trl
from benchmarks.vs_trl.jobs import RAGGED, WORKLOADS, InTurn, Iteration, Job, choose_prompts, count_tokens, nearest
from benchmarks.vs_trl.models import make_classifier, make_tiny
from benchmarks.vs_trl.ours import build, timed_step
from benchmarks.vs_trl.report import QUANTITIES, Run, best_trl, gain, median, tables, write

GIB = 2**30
FULL, ADAPTER, OURS = "TRL, full", "TRL, adapter", "rlhf_fast, adapter"


def a_run(side: str, *iterations: tuple[float, float, float, float, int], round_: int = 0, gib: float = 1.0) -> Run:
    return Run(side, round_, [Iteration(*i, score=0.0, kl=0.0) for i in iterations], int(gib * GIB), {})


def two_rounds() -> list[Run]:
    return [
        a_run(FULL, (4.0, 2.0, 30.0, 8.0, 90), gib=5),
        a_run(ADAPTER, (4.0, 2.0, 18.0, 8.0, 96), gib=4),
        a_run(OURS, (2.0, 0.5, 5.5, 4.0, 80), gib=2),
        a_run(FULL, (5.0, 3.0, 40.0, 10.0, 90), round_=1, gib=5),
        a_run(ADAPTER, (6.0, 4.0, 26.0, 12.0, 72), round_=1, gib=4),
        a_run(OURS, (1.0, 1.0, 4.0, 2.0, 60), round_=1, gib=1),
    ]


def test_phases_and_rate_of_a_run_are_those_of_its_iterations():
    run = a_run(OURS, (1.0, 2.0, 3.0, 2.0, 30), (2.0, 2.0, 5.0, 4.0, 45), (9.0, 1.0, 5.0, 18.0, 75))
    assert [run.seconds(phase) for phase in ("rollout", "scoring", "update")] == [2.0, 2.0, 5.0]
    assert run.seconds("seconds") == 9.0  # of 6, 9 and 15, not the sum of the phases' medians
    assert run.rate == 150 / 30


def test_the_fastest_row_of_trl_is_what_ratios_are_over():
    assert best_trl(two_rounds()) == ADAPTER
    assert best_trl([run for run in two_rounds() if run.side == OURS]) is None


@pytest.mark.parametrize(
    "name, expected",
    [
        ("rollout, s", (4 / 2 + 6 / 1) / 2),
        ("scoring, s", (2 / 0.5 + 4 / 1) / 2),
        ("update, s", (18 / 5.5 + 26 / 4) / 2),
        ("iteration, s", (24 / 8 + 36 / 6) / 2),
        ("CPU, s", (8 / 4 + 12 / 2) / 2),
        ("tokens/s", ((80 / 8) / (96 / 24) + (60 / 6) / (72 / 36)) / 2),
        ("peak, GiB", (4 / 2 + 4 / 1) / 2),
    ],
)
def test_a_gain_is_the_median_of_the_ratios_within_a_round_and_above_one_where_ours_is_better(name, expected):
    assert gain(two_rounds(), ADAPTER, OURS, name) == pytest.approx(expected)
    assert expected > 1


def test_median_over_rounds():
    assert median(two_rounds(), FULL, QUANTITIES["iteration, s"]) == (36 + 48) / 2
    assert median(two_rounds(), OURS, QUANTITIES["peak, GiB"]) == 1.5


def test_tables_show_every_row_and_gains_of_ours_only():
    took, times = tables(two_rounds(), "uniform")
    assert list(took.columns[0].cells) == [FULL, ADAPTER, OURS]
    assert list(took.columns[4].cells) == ["42.00", "30.00", "7.00"]
    assert list(times.columns[0].cells) == [OURS]
    assert list(times.columns[4].cells) == ["4.50"]
    assert ADAPTER in str(times.title)
    assert len(tables([run for run in two_rounds() if run.side != OURS], "uniform")) == 1


def test_files_hold_the_raw_numbers(tmp_path):
    runs = two_rounds()
    write(runs, tmp_path, "uniform: a machine")
    rows = list(csv.DictReader((tmp_path / "runs.csv").open()))
    assert [(row["row"], row["round"], float(row["update"]), int(row["tokens"])) for row in rows] == [
        (run.side, str(run.round), i.update, i.tokens) for run in runs for i in run.iterations
    ]
    assert json.loads((tmp_path / "runs.json").read_text())["runs"][0]["iterations"][0]["update"] == 30.0
    assert (tmp_path / "phases.png").stat().st_size > 1000


def test_tokens_are_counted_to_the_first_stop():
    responses = [[7, 1, 1, 1], [7, 8, 9, 1], [7, 8, 9, 7], [1, 7, 7, 7]]
    assert count_tokens(responses, 1) == 2 + 4 + 4 + 1
    assert count_tokens(responses, None) == 16


def test_a_batch_has_every_prompt_whatever_is_asked_for():
    data = InTurn([[5], [6, 7], [8]], batches=4)
    assert len(data) == 12
    assert [data[i]["input_ids"] for i in (11, 0, 5, 2)] == [[5], [6, 7], [8], [5]]


def test_a_prompt_is_the_end_of_the_shortest_text_that_is_long_enough():
    texts = [list(range(9)), list(range(20, 25)), list(range(30, 37))]
    assert nearest(texts, (4, 6, 9)) == [[21, 22, 23, 24], [31, 32, 33, 34, 35, 36], list(range(9))]


def test_workloads_are_what_the_documentation_says():
    uniform, ragged = WORKLOADS["uniform"], WORKLOADS["ragged"]
    assert (uniform.prompt_lengths, uniform.response_length, uniform.stop) == ((64,) * 16, 64, False)
    assert (len(RAGGED), min(RAGGED), max(RAGGED)) == (32, 32, 192)
    assert (ragged.response_length, ragged.stop, ragged.ppo_epochs) == (256, True, 4)


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Path, Path]:
    model = make_tiny(tmp_path / "tiny")
    return model, make_classifier(model, tmp_path / "classifier")


def test_random_prompts_have_the_lengths_and_no_special_token(tiny, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny[0])
    prompts = choose_prompts((5, 90), tokenizer, tmp_path / "absent")
    assert [len(ids) for ids in prompts] == [5, 90]
    assert all(2 <= token < 128 for ids in prompts for token in ids)
    assert prompts == choose_prompts((5, 90), tokenizer, tmp_path / "absent")


class Scripted:
    """A trainer whose stages take given seconds of a clock that only it moves."""

    now = 0.0

    def step(self):
        self.now += 1
        self.collect()
        self.now += 2
        self.update("rollout")
        self.now += 4
        return {"objective/scores": 1.5, "objective/kl": 0.25}

    def collect(self):
        self.now += 8
        return self

    def update(self, rollout):
        self.now += 16

    def responses(self):
        return [[5, 6, 7], [8, 9]]


def test_what_is_neither_rollout_nor_update_is_scoring(monkeypatch):
    ppo: Any = Scripted()
    monkeypatch.setattr(time, "perf_counter", lambda: ppo.now)
    monkeypatch.setattr(time, "process_time", lambda: 2 * ppo.now)
    for _ in range(2):
        assert timed_step(ppo) == Iteration(
            rollout=8, scoring=1 + 2 + 4, update=16, cpu=62, tokens=5, score=1.5, kl=0.25
        )


def test_our_side_trains_and_every_response_fills_its_budget(tiny, tmp_path):
    job = Job(str(tiny[0]), str(tiny[1]), [[5, 6, 7], [8, 9]], 4, False, 2, 0, 2, "adapter", None)
    job.write(tmp_path / "job.json")
    ppo = build(Job.read(tmp_path / "job.json"))
    before = [p.detach().clone() for _, p in ppo.policy.named_parameters()]
    found = [timed_step(ppo) for _ in range(2)]
    for iteration in found:
        assert iteration.tokens == 2 * 4
        assert min(iteration.rollout, iteration.scoring, iteration.update, iteration.cpu) > 0
    assert ppo.iteration == ppo.iterations == 2
    assert not all(torch.equal(a, b) for a, (_, b) in zip(before, ppo.policy.named_parameters(), strict=True))


@pytest.mark.slow
def test_both_sides_run_the_same_job(tmp_path, monkeypatch):
    if not environments.is_made(vs_trl.TRL):
        pytest.skip(f"TRL's environment {vs_trl.TRL} is not made; python -m benchmarks.vs_trl --smoke makes it")
    monkeypatch.setattr(sys, "argv", ["vs_trl", "--smoke", "--iterations", "1", "--output_dir", str(tmp_path)])
    vs_trl.main()
    runs = json.loads((tmp_path / "smoke" / "runs.json").read_text())["runs"]
    assert [run["side"] for run in runs] == list(vs_trl.SIDES)
    for run in runs:
        (iteration,) = run["iterations"]
        assert 16 <= iteration["tokens"] <= 16 * 8
        assert min(iteration[phase] for phase in ("rollout", "scoring", "update", "cpu")) > 0
        assert run["peak_bytes"] > 50 * 2**20
    assert {run["versions"].get("trl") for run in runs} == {"1.12.0", None}
    assert len({run["versions"]["transformers"] for run in runs}) == 1
