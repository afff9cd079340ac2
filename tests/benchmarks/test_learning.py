"""The task that both libraries learn, and that a run of it is reported as it went."""

from __future__ import annotations

import csv
import random
import sys
from itertools import pairwise

import pytest
import torch

from benchmarks.vs_trl import learning, task
from benchmarks.vs_trl.jobs import Iteration
from benchmarks.vs_trl.report import Run


def test_a_walk_follows_the_graph_and_ends_once():
    graph, draw = task.make_graph(), random.Random(3)
    for _ in range(50):
        words = task.walk(12, draw, graph)
        assert 1 <= len(words) <= 12 and task.EOS not in words[:-1]
        assert all(b in graph[a] or b == task.EOS for a, b in pairwise(words))


def test_the_score_is_four_times_the_share_of_liked_words_less_one():
    ids = torch.tensor([[2, 31, 32, 127], [127, 2, 1, 5]])
    torch.testing.assert_close(task.liked_share(ids), torch.tensor([[3, 3, 5 / 3, 1], [-1, 1, 1 / 3, 1]]))


def test_prompts_are_beginnings_of_sentences():
    found = task.prompts(8)
    assert [len(words) for words in found] == [4, 5, 6, 7] * 2
    assert found == task.prompts(8) and not any(task.EOS in words for words in found)


def test_a_row_ends_with_the_mean_of_its_last_iterations():
    iterations = [Iteration(1, 1, 1, 1, 5, score=float(i), kl=2.0 * i) for i in range(20)]
    assert learning.last(iterations, "score") == 14.5 and learning.last(iterations, "kl") == 29.0
    shown = learning.table([Run("a", seed, iterations, 0, {}) for seed in range(2)])
    assert [list(column.cells) for column in shown.columns][1:] == [
        ["14.500 (14.500 to 14.500)"], ["29.000 (29.000 to 29.000)"], ["3.00"],
    ]  # fmt: skip


@pytest.mark.slow
def test_a_short_run_leaves_its_curves(tmp_path, monkeypatch):
    monkeypatch.setattr(task, "fit", lambda model, steps, loss: None)  # untrained models run as well
    row = "rlhf_fast, policy_head critic"
    arguments = ["learning", "--iterations", "2", "--seeds", "2", "--sides", row, "--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    learning.main()
    found = list(csv.DictReader((tmp_path / "curves.csv").open()))
    assert [(line["row"], line["seed"], line["iteration"]) for line in found] == [
        (row, seed, i) for seed in "01" for i in "01"
    ]
    assert float(found[0]["kl"]) == pytest.approx(0, abs=1e-4)
    assert found[0]["score"] != found[2]["score"]  # another seed samples otherwise
    assert (tmp_path / "learning.png").stat().st_size > 1000
