"""rollouts.jsonl: what PPO trained on, line by line, before it trains, and cut back to a checkpoint."""

from __future__ import annotations

import json

import pytest
import torch

from rlhf_fast.rewards.source import Scores
from rlhf_fast.rollout.rollout import Rollout
from rlhf_fast.runtime.checkpoint import State
from rlhf_fast.train.rollout_log import ROLLOUTS_FILE, RolloutLog, rollout_rows
from tests.train.cases import run


def read(folder) -> list[dict]:
    return [json.loads(line, parse_constant=pytest.fail) for line in (folder / ROLLOUTS_FILE).open(encoding="utf-8")]


def test_a_row_by_hand():
    rollout = Rollout.from_responses(
        [[1, 2], [3]], [[4, 5, 2], [6]], finished=[True, False], budget=3, prompt_rows=[7, 0], seeds=[11, 12]
    )
    rollout.kl = torch.tensor([0.5, 0.25, -0.125, float("inf")])
    parts = {"a": torch.tensor([1.25, 0.0]), "b": torch.tensor([0.5, 1.0])}
    scores = Scores(torch.tensor([2.5, -1.0]), parts)
    one, two = rollout_rows(rollout, scores, iteration=3, prompts=["p", "q"], responses=["r", "s"])
    assert one == {
        "iteration": 3, "prompt_row": 7, "seed": 11, "prompt": "p", "response": "r", "score": 2.5, "kl": 0.625,
        "length": 3, "finished": True, "scores": {"a": 1.25, "b": 0.5},
    }  # fmt: skip
    assert two["kl"] is None and not two["finished"] and two["scores"] == {"a": 0.0, "b": 1.0} and two["length"] == 1


def test_an_iterations_rollout_is_on_disk_before_its_update_and_means_what_the_metrics_say(tmp_path, monkeypatch):
    ppo, seen = run(tmp_path), []
    update = ppo.update
    monkeypatch.setattr(ppo, "update", lambda rollout: (seen.append(len(read(tmp_path))), update(rollout))[1])
    with RolloutLog(tmp_path, enabled=True) as ppo.rollouts:
        metrics = [ppo.step() for _ in range(2)]
    rows = read(tmp_path)
    assert seen == [16, 32] and [row["iteration"] for row in rows] == [1] * 16 + [2] * 16
    for number, own in enumerate(metrics, 1):
        mine = [row for row in rows if row["iteration"] == number]
        assert sum(row["score"] for row in mine) / 16 == pytest.approx(own["objective/scores"], abs=1e-6)
        assert sum(row["kl"] for row in mine) / 16 == pytest.approx(own["objective/kl"], abs=1e-6)
        assert sum(row["length"] for row in mine) / 16 == own["rollout/response_length"]
        assert sum(row["finished"] for row in mine) == own["val/num_eos_tokens"]


def test_what_came_after_the_checkpoint_is_cut_off(tmp_path):
    log = RolloutLog(tmp_path, enabled=True)
    with log:
        log.write([{"response": "eins"}])
        state = log.state()
        log.write([{"response": "später"}])
    resumed = RolloutLog(tmp_path, enabled=True)
    resumed.load_state(state)
    with resumed:
        resumed.write([{"response": "zwei"}])
    assert [row["response"] for row in read(tmp_path)] == ["eins", "zwei"]


def test_rollouts_that_are_gone_are_said_and_nothing_is_made_up(tmp_path, caplog):
    log = RolloutLog(tmp_path, enabled=True)
    log.load_state(State(facts={"bytes": 100}))
    with log:
        log.write([{"response": "new"}])
    assert "holds 0 of the 100 bytes" in caplog.text and read(tmp_path) == [{"response": "new"}]


def test_without_the_log_nothing_is_written_and_an_earlier_runs_is_removed(tmp_path):
    (tmp_path / ROLLOUTS_FILE).write_text("{}\n")
    with RolloutLog(tmp_path, enabled=False) as log:
        log.write([{"response": "x"}])
    assert not (tmp_path / ROLLOUTS_FILE).exists() and log.state().facts == {"bytes": 0}
