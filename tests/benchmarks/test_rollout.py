"""The benchmark of generation: what it counts from given numbers, and that both sides run to the same tokens."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks import rollout
from benchmarks.rollout_sides import CALLED, PREPARATION, REST, Ours, Shape, Theirs, generation_config, timed
from benchmarks.vs_trl.models import make_tiny
from rlhf_fast.bench.timing import Work
from rlhf_fast.model.load import load_causal_lm, load_shared
from rlhf_fast.model.roles import Policy
from rlhf_fast.rollout.sampling import Sampling

PROMPTS = [[5, 6, 7, 8], [9, 10, 11, 12], [20, 30, 40, 50]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(make_tiny(tmp_path_factory.mktemp("tiny")))


def test_both_sides_give_the_same_greedy_tokens_and_fill_their_length(tiny):
    ours = Ours(Policy(*load_shared(tiny, dtype=torch.float32)), PROMPTS, Sampling(6, (), 0.0))
    model = load_causal_lm(tiny, dtype=torch.float32)
    ours()
    model.generation_config.eos_token_id = ours.responses[0][2]  # which ends no response here
    theirs = Theirs(model, PROMPTS, generation_config(6, 0.0))
    theirs()
    assert ours.responses == theirs.responses and {len(r) for r in ours.responses} == {6}
    (parts,) = ours.parts
    assert list(parts) == [PREPARATION, *CALLED, REST] and min(parts.values()) > 0


def test_sampling_of_transformers_is_from_the_whole_distribution(tiny):
    torch.manual_seed(0)
    theirs = Theirs(load_causal_lm(tiny, dtype=torch.float32), PROMPTS * 20, generation_config(6, 1.0))
    theirs()
    assert {len(r) for r in theirs.responses} == {6}
    assert len({token for response in theirs.responses for token in response}) > 90  # of 128; its own top 50 gives 50


def test_seconds_of_calls_add_up(monkeypatch):
    clock = iter([0.0, 2.0, 10.0, 13.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    parts = {"a": 1.0}
    call = timed(lambda x: x + 1, parts, "a")
    assert (call(1), call(5), parts) == (2, 6, {"a": 6.0})


def test_work_by_hand(tiny):
    policy = Policy(*load_shared(tiny, dtype=torch.bfloat16))
    layer = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 64 * 96 + 2 * 64  # q, k and v, o, the MLP, and the norms
    weights, token, head = 2 * layer, 2 * 2 * 2 * 16 * 2, 128 * 64
    assert rollout.work(policy, Shape(3, 10, 5)) == {
        "prefill": Work(2 * 30 * weights, 2 * weights + 30 * token),
        "decode": Work(4 * 2 * 3 * weights, 4 * (2 * weights + 3 * 12.5 * token)),
        "head and sampling": Work(5 * 2 * 3 * head, 5 * 2 * head),
    }


def test_tokens_count_as_equal_until_a_response_first_differs():
    assert rollout.same_tokens([[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 2, 9, 4], [5, 6, 7, 8]]) == (2 + 4) / 8


def test_tables_show_medians_ratios_of_a_round_and_shares_of_the_limit():
    times = {
        "ours, greedy": [2.0, 1.0, 4.0], "theirs, greedy": [4.0, 4.0, 4.0],
        "ours, sampling": [1.0, 1.0, 1.0], "theirs, sampling": [3.0, 2.0, 5.0],
    }  # fmt: skip
    table = rollout.sides_table(times, Shape(2, 8, 6), 0.5)
    assert [list(column.cells) for column in table.columns] == [
        ["greedy", "sampling"], ["6", "12"], ["3", "4"], ["2.00", "3.00"],
    ]  # fmt: skip
    rollouts = [{"decode": 0.010, REST: 0.030}, {"decode": 0.020, REST: 0.020}, {"decode": 0.020, REST: 0.020}]
    table = rollout.parts_table("greedy", rollouts, {"decode": 0.005})
    assert [list(column.cells) for column in table.columns] == [
        ["decode", REST], ["20.0", "20.0"], ["50.0%", "50.0%"], ["25.0", ""],
    ]  # fmt: skip


def test_it_runs_on_a_tiny_model(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rollout", "--smoke", "--rounds", "2", "--threads", "1"])
    assert rollout.main() == 0
    printed = capsys.readouterr().out
    assert "2 responses of 8 tokens" in printed and "head and sampling" in printed and "% of limit" in printed
