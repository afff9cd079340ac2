"""A reward that hangs, raises or answers badly is asked again, then ends the run by name; nothing is lost."""

from __future__ import annotations

import time

import pytest
import torch

from rlhf_fast import FunctionReward, UsageError
from rlhf_fast.rewards import retrying as module
from rlhf_fast.rewards.retrying import RetryingReward
from rlhf_fast.rewards.source import RewardBatch
from rlhf_fast.runtime import interrupt
from rlhf_fast.runtime.errors import StepFailed
from rlhf_fast.train.ppo_run import run_ppo
from tests.resume.cases import config, outcome, prepare
from tests.resume.counting import names

BATCH = RewardBatch(["p0", "p1"], ["a", "b"], [[1], [2]])


def failing(times: int, how):
    """A function that fails so many times, then scores 1 and 2; `calls` counts."""

    def function(prompts, responses, **columns):
        function.calls += 1
        return how() if function.calls <= times else [1.0, 2.0]

    function.calls = 0
    return function


def fails():
    raise OSError("the judge is away")


def retrying(function, kind: str, retries: int) -> RetryingReward:
    limit = 0.5 if kind == "hangs" else 30.0
    return RetryingReward(FunctionReward("judge", function), timeout=limit, retries=retries, pause=0.01)


BAD = {
    "raises": (fails, "OSError: the judge is away"),
    "NaN": (lambda: [float("nan"), 0.0], "gave nan for response 'a'"),
    "infinity": (lambda: [0.0, float("-inf")], "gave -inf for response 'b'"),
    "too few": (lambda: [0.0], r"shape \(1,\) for 2 responses"),
    "no numbers": (lambda: ["good", "bad"], "the reward function 'judge' failed"),
    "hangs": (lambda: time.sleep(3), r"TimeoutError: no answer within 0\.5 s"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_failure_is_reported_and_the_reward_asked_again(caplog, kind):
    function = failing(2, BAD[kind][0])
    reward = retrying(function, kind, retries=2)
    assert reward.score(BATCH).tolist() == [1.0, 2.0] and function.calls == 3
    said = [record.message for record in caplog.records]
    assert [f"attempt {i} of 3" in said[i - 1] for i in (1, 2)] == [True, True] and len(said) == 2


@pytest.mark.parametrize("kind", BAD)
def test_after_the_last_attempt_the_error_names_reward_attempt_and_reason(kind):
    function = failing(9, BAD[kind][0])
    reward = retrying(function, kind, retries=1)
    with pytest.raises(StepFailed, match=f"reward 'judge' failed, attempt 2 of 2: .*{BAD[kind][1]}"):
        reward.score(BATCH)
    assert function.calls == 2


def test_pauses_double_up_to_half_a_minute(monkeypatch):
    pauses = []
    monkeypatch.setattr(module, "_wait", pauses.append)
    with pytest.raises(StepFailed):
        RetryingReward(FunctionReward("judge", failing(99, fails)), timeout=None, retries=7).score(BATCH)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


def test_without_a_limit_a_reward_runs_in_the_thread_of_the_run():
    import threading

    seen = []
    function = failing(0, fails)
    spy = FunctionReward("judge", lambda *a, **c: (seen.append(threading.current_thread()), function(*a, **c))[1])
    RetryingReward(spy, timeout=None, retries=0).score(BATCH)
    assert seen == [threading.main_thread()]


def test_a_run_that_is_asked_to_stop_does_not_wait_for_a_reward_that_hangs(monkeypatch):
    monkeypatch.setattr(interrupt, "_asked", interrupt.signal.SIGTERM)
    started = time.monotonic()
    with pytest.raises(interrupt.Abandoned):
        RetryingReward(FunctionReward("judge", lambda *a, **c: time.sleep(20)), timeout=10.0, retries=0).score(BATCH)
    assert time.monotonic() - started < 5


def test_a_run_whose_reward_fails_is_saved_as_before_the_step_and_then_ends_bit_for_bit_the_same(tmp_path):
    """It fails in iteration 4, one beyond a checkpoint, after it has drawn from torch's generator."""
    folder = prepare(tmp_path)

    def judge(prompts, responses, **columns):
        judge.calls += 1
        noise = torch.rand(len(responses)).tolist()
        if judge.calls == judge.fails_at:
            raise OSError("away")
        return noise

    def run(output, fails_at=None, **options):
        judge.calls, judge.fails_at = 0, fails_at
        run_ppo(config("ppo", folder, output, reward_retries=0, **options), [(FunctionReward("judge", judge), 1.0)])

    with pytest.raises(UsageError, match=r"reward 'judge' failed, attempt 1 of 1: .*away.*checkpoint-3 is whole"):
        run(tmp_path / "failed", fails_at=4)
    assert names(tmp_path / "failed") == ["checkpoint-3", "checkpoint-2"]
    run(tmp_path / "failed", resume="auto")
    run(tmp_path / "whole")
    assert outcome(tmp_path / "failed") == outcome(tmp_path / "whole")


def test_the_limit_of_the_config_is_that_of_an_attempt(tmp_path):
    folder, calls = prepare(tmp_path), []

    def judge(prompts, responses, **columns):
        calls.append(1)
        time.sleep(3)
        return [0.0] * len(responses)

    options = {"reward_timeout": 0.3, "reward_retries": 0}
    with pytest.raises(UsageError, match=r"attempt 1 of 1: TimeoutError: no answer within 0\.3 s \(reward_timeout\)"):
        run_ppo(config("ppo", folder, tmp_path / "out", **options), [(FunctionReward("judge", judge), 1.0)])
    assert len(calls) == 1


def test_a_limit_is_refused_where_the_only_reward_is_a_model(tmp_path):
    folder = prepare(tmp_path)
    with pytest.raises(UsageError, match=r"reward_timeout=5\.0 cannot be used: expected nothing where the reward is a"):
        run_ppo(config("ppo", folder, tmp_path / "out", reward_timeout=5.0))
