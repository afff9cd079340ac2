"""A trainer's run that is stopped by a signal, or by a reward that fails, loses nothing."""

from __future__ import annotations

import json
import os
import signal

import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback

from rlhf_fast import UsageError
from rlhf_fast.rewards import retrying
from rlhf_fast.runtime.interrupt import Interrupted
from tests.trainer.cases import classifier, likes_even, trainer


class Asks(TrainerCallback):
    """Sends a signal at the end of an iteration."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def outcome(folder):
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in row.items() if name not in ("seconds", "eps")} for row in metrics]
    weights = load_file(folder / "adapter_model.safetensors")
    return kept, {name: value.tolist() for name, value in weights.items()}, (folder / "rollouts.jsonl").read_text()


def test_a_signal_saves_the_run_which_then_ends_as_if_nothing_had_been(tmp_path):
    """No checkpoint was due: save_steps is 500."""
    with pytest.raises(Interrupted, match=r"SIGTERM after step 2 of 3\. .*checkpoint-2 is whole"):
        trainer(tmp_path / "stopped", callbacks=[Asks(2)]).train()
    trainer(tmp_path / "stopped").train(resume_from_checkpoint=True)
    trainer(tmp_path / "whole").train()
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")
    assert len(outcome(tmp_path / "whole")[2].splitlines()) == 24


def test_a_reward_that_fails_is_asked_again_and_then_the_run_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(retrying, "_wait", lambda seconds: None)
    calls = []

    def judge(prompts, responses, **columns):
        calls.append(len(calls))
        if len(calls) in (2, 4, 5):
            raise OSError("away")
        return likes_even(prompts, responses)

    with pytest.raises(UsageError, match=r"'judge' failed, attempt 2 of 2: .*OSError: away\. .*checkpoint-2 is whole"):
        trainer(tmp_path, reward_model=judge, options={"reward_retries": 1}).train()
    assert len(calls) == 5


def test_rollouts_can_be_left_out(tmp_path):
    trainer(tmp_path, options={"log_rollouts": False, "total_episodes": 8}).train()
    assert not (tmp_path / "rollouts.jsonl").exists()


def test_a_limit_is_refused_where_the_reward_is_a_model(tmp_path):
    with pytest.raises(
        UsageError, match="reward_timeout=5 cannot be used: expected nothing where the reward is a model"
    ):
        trainer(tmp_path, reward_model=classifier(), options={"reward_timeout": 5})
