"""Python functions as rewards: how they are called, what they may return, and how a run is given them."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import threading
import time

import pytest
import torch

from rlhf_fast import ForbiddenPhrases, FunctionReward, UsageError
from rlhf_fast.rewards.chosen import choose_rewards
from rlhf_fast.rewards.retrying import RetryingReward
from rlhf_fast.rewards.source import RewardBatch, WeightedRewards, response_texts
from rlhf_fast.runtime import interrupt
from rlhf_fast.runtime.errors import StepFailed
from rlhf_fast.runtime.tracking import read_metrics
from rlhf_fast.train.ppo_run import run_ppo
from tests.resume.cases import config, prepare
from tests.tiny_tokenizer import tiny_tokenizer

ASKED = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "late?"}]
BATCH = RewardBatch(
    ["plain ", "<user> late? <reply>"], ["a b", "sorry"], [[1, 5, 6, 2], [3, 7]], {"target": [2, 5]},
    [None, ASKED], [[5, 6, 2], [7]], [True, False],
)  # fmt: skip


def called(function, batch: RewardBatch = BATCH):
    """What `function`, which records its arguments and returns zeros, was called with."""
    reward = FunctionReward("f", function)
    reward.check_signature(batch.columns)
    assert reward.score(batch).tolist() == [0.0] * len(batch)
    return function.seen


def records(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        wrapper.seen = args, kwargs
        return [0.0, 0.0]

    return wrapper


# -- which arguments


def test_texts_go_by_position_where_the_parameters_have_other_names():
    args, kwargs = called(records(lambda p, r, **columns: None))
    assert args == (["plain ", "<user> late? <reply>"], ["a b", "sorry"]) and kwargs == {"target": [2, 5]}


@pytest.mark.parametrize(
    "function",
    [
        lambda responses, prompts, target: None,  # in another order than the documented one
        lambda *, target, prompts, responses: None,
        lambda target, responses, prompts, **columns: None,
    ],
)
def test_texts_and_columns_go_by_name_in_whatever_order_the_function_names_them(function):
    args, kwargs = called(records(function))
    wanted = {"prompts": BATCH.prompts, "responses": BATCH.responses, "target": [2, 5]}
    assert args == () and kwargs == wanted


def test_a_function_of_responses_alone_need_not_take_the_prompts():
    assert called(records(lambda responses, **columns: None))[1] == {"responses": ["a b", "sorry"], "target": [2, 5]}


def test_messages_and_token_ids_are_passed_to_a_function_that_names_them():
    args, kwargs = called(records(lambda prompts, responses, messages, response_ids, **columns: None))
    assert kwargs["messages"] == [None, ASKED] and kwargs["response_ids"] == [[5, 6, 2], [7]]
    args, kwargs = called(records(lambda p, r, messages, completion_ids, **columns: None))
    assert args[1] == ["a b", "sorry"] and kwargs["completion_ids"] == [[5, 6, 2], [7]]
    kwargs["messages"][1].append("mine")
    assert len(ASKED) == 2


def test_a_function_as_trls_grpo_has_it_gets_completions_and_messages_for_conversations():
    _, kwargs = called(records(lambda completions, **kwargs: None))
    assert kwargs == {
        "prompts": ["plain ", ASKED], "completions": ["a b", [{"role": "assistant", "content": "sorry"}]],
        "completion_ids": [[5, 6, 2], [7]], "target": [2, 5],
    }  # fmt: skip
    assert set(called(records(lambda prompts, completions, target: None))[1]) == {"prompts", "completions", "target"}


def test_two_rewards_of_trls_documentation_score_what_they_should():
    def format_reward(completions, **kwargs):
        texts = [completion[0]["content"] for completion in completions]
        return [1.0 if text.startswith("<think>") else 0.0 for text in texts]

    def accuracy(prompts, completions, ground_truth, **kwargs):
        return [float(done[0]["content"].endswith(wanted)) for done, wanted in zip(completions, ground_truth)]  # noqa: B905

    chats = [[{"role": "user", "content": "2 + 2"}], [{"role": "user", "content": "3 + 3"}]]
    texts = ["<think> easy </think> 4", "5"]
    batch = RewardBatch(["", ""], texts, [[1], [1]], {"ground_truth": ["4", "6"]}, chats, [[1], [1]])
    assert FunctionReward("format", format_reward).score(batch).tolist() == [1.0, 0.0]
    assert FunctionReward("accuracy", accuracy).score(batch).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("function", "columns", "message"),
    [
        (lambda responses, completions: [], [], "both responses and completions"),
        (lambda answers, prompts: [], [], "takes the responses cannot be told; name it responses"),
        (lambda completions, trainer_state: [], [], "missing a required argument: 'trainer_state'"),
        (lambda completions, **kwargs: [], ["prompts"], "multiple values for argument 'prompts'.*rename a column"),
        (lambda prompts, responses, messages: [], ["messages"], "multiple values for argument 'messages'"),
        (lambda completions: [], ["topic"], "unexpected keyword argument 'topic'.*columns are topic.*Add"),
        (lambda responses, target: [], [], "missing a required argument: 'target'"),
    ],
)
def test_a_signature_that_cannot_be_served_is_refused_before_the_function_is_called(function, columns, message):
    with pytest.raises(UsageError, match=message):
        FunctionReward("f", function).check_signature(columns)


def test_token_ids_that_are_not_there_are_no_empty_list():
    batch = RewardBatch(["p"], ["r"], [[1]])
    with pytest.raises(UsageError, match="takes response_ids, and this batch has none"):
        FunctionReward("f", lambda responses, response_ids: [0.0]).score(batch)


# -- what it may return


def test_none_leaves_a_response_out_of_the_sum_and_of_the_mean_of_that_reward():
    maths = FunctionReward("maths", lambda responses, **columns: [None, 3.0])
    style = FunctionReward("style", lambda responses, **columns: [1.0, None])
    scores = WeightedRewards([(maths, 2.0), (style, 5.0)]).score(BATCH)
    assert scores.total.tolist() == [5.0, 6.0]
    assert math.isnan(scores.parts["maths"][0]) and scores.parts["maths"][1] == 3.0
    asked = WeightedRewards([(RetryingReward(maths, 5.0, 0), 2.0), (RetryingReward(style, None, 0), 5.0)])
    assert asked.score(BATCH).total.tolist() == [5.0, 6.0]


def test_a_response_that_every_reward_leaves_out_ends_the_run():
    parts = [(FunctionReward(name, lambda responses, **columns: [0.0, None]), 1.0) for name in ("one", "two")]
    with pytest.raises(StepFailed, match="no reward judges response 'sorry': one, two gave None"):
        WeightedRewards(parts).score(BATCH)


@pytest.mark.parametrize("scores", [[None, math.nan], [math.nan, 1.0], torch.tensor([math.nan, 1.0]), [None, math.inf]])
def test_a_number_that_is_not_finite_is_no_none(scores):
    with pytest.raises(StepFailed, match=r"reward 'f' gave (nan|inf) for response"):
        FunctionReward("f", lambda responses, **columns: scores).score(BATCH)


def test_a_source_that_is_no_function_may_not_give_nan():
    class Broken:
        name = "broken"

        def score(self, batch):
            return torch.tensor([1.0, math.nan])

    with pytest.raises(StepFailed, match="reward 'broken' gave nan"):
        WeightedRewards([(Broken(), 1.0)]).score(BATCH)


# -- async functions


def test_an_async_function_is_awaited_with_the_whole_batch_on_one_loop():
    loops = []

    async def judge(completions, **kwargs):
        loops.append(asyncio.get_running_loop())
        lengths = await asyncio.gather(*(asyncio.sleep(0.05, len(text)) for text in ("a b", "sorry")))
        return [float(length) for length in lengths]

    reward = FunctionReward("judge", judge)
    assert reward.score(BATCH).tolist() == [3.0, 5.0] and reward.score(BATCH).tolist() == [3.0, 5.0]
    assert loops[0] is loops[1]

    async def within_a_loop():  # as in a notebook
        return reward.score(BATCH).tolist()

    assert asyncio.run(within_a_loop()) == [3.0, 5.0]


class Waiting:
    """An object whose call is async and hangs; it says whether it was cancelled."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()

    async def __call__(self, prompts, responses, **columns):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


def test_an_async_function_over_its_time_is_cancelled():
    waiting, started = Waiting(), time.monotonic()
    with pytest.raises(StepFailed, match=r"TimeoutError: no answer within 0\.3 s \(reward_timeout\)"):
        RetryingReward(FunctionReward("slow", waiting), timeout=0.3, retries=0).score(BATCH)
    assert waiting.cancelled.wait(3) and time.monotonic() - started < 5


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_a_run_that_is_asked_to_stop_cancels_an_async_function(monkeypatch, timeout):
    monkeypatch.setattr(interrupt, "_asked", interrupt.signal.SIGINT)
    waiting, started = Waiting(), time.monotonic()
    with pytest.raises(interrupt.Abandoned):
        RetryingReward(FunctionReward("slow", waiting), timeout=timeout, retries=0).score(BATCH)
    assert waiting.cancelled.wait(3) and time.monotonic() - started < 5


def test_an_async_function_that_raises_is_a_failure_with_its_reason():
    async def judge(prompts, responses, **columns):
        raise OSError("away")

    with pytest.raises(
        UsageError, match=r"'judge' failed: OSError: away\. Raised in test_functions\.py, line \d+\. It is"
    ):
        FunctionReward("judge", judge).score(BATCH)


# -- how a run is given them


def short(prompts, responses, **columns):
    return [-float(len(response.split())) for response in responses]


class Judge:
    def __call__(self, prompts, responses, **columns):
        return [1.0] * len(responses)


def names_and_weights(*given, names=(), weights=None):
    return [(source.name, weight) for source, weight in choose_rewards(names, weights, given, timeout=None)]


def test_bare_functions_have_their_own_name_and_a_number_where_it_is_taken():
    found = names_and_weights(
        short, (short, 2.0), FunctionReward("short_2", short), (FunctionReward("named", short), 3), Judge(),
        functools.partial(short), lambda p, r: [], ForbiddenPhrases(["no"]),
    )  # fmt: skip
    assert found == [
        ("short", 1.0), ("short_3", 2.0), ("short_2", 1.0), ("named", 3.0), ("Judge", 1.0), ("short_4", 1.0),
        ("reward", 1.0), ("forbidden_phrases", 1.0),
    ]  # fmt: skip


def test_a_function_called_as_the_reward_model_gets_a_number():
    def reward_model(prompts, responses):
        return []

    assert names_and_weights(reward_model) == [("reward_model_2", 1.0)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Judge, "the reward Judge is a class.*Give an instance"),
        ("rewards:short", "the reward 'rewards:short' is a str; expected a function"),
        ((short, "2"), "the weight of reward short is '2'; expected a finite number"),
        ((short, math.nan), "the weight of reward short is nan"),
        ((short, True), "the weight of reward short is True"),
        (torch.nn.Linear(2, 1), "is a model.*Give its folder as the reward model"),
        (None, "the reward None is a NoneType"),
    ],
)
def test_what_is_no_reward_is_refused(given, message):
    with pytest.raises(UsageError, match=message):
        names_and_weights(given)


def test_a_reward_that_is_not_in_a_list_says_so():
    for given in (short, ForbiddenPhrases(["no"])):
        with pytest.raises(UsageError, match=r"rewards is .*; expected a list.* Put it in brackets"):
            choose_rewards([], None, given, timeout=None)


def test_a_run_takes_functions_of_every_kind_and_logs_each_under_its_name(tmp_path):
    """Prompts of the run are "w0 w1" to "w15 w16"; only those that begin with w1 are judged by `some`."""

    async def words(completions, **kwargs):
        return [float(len(text.split())) for text in completions]

    def some(prompts, responses, completion):
        return [4.0 if prompt.startswith("w1") else None for prompt in prompts]

    folder = prepare(tmp_path)
    given = [words, (some, 2.0), FunctionReward("one", lambda p, r, **c: [1.0] * len(r))]
    run_ppo(config("ppo", folder, tmp_path / "out", reward_model_path=None, total_episodes=12), given)
    rows = [json.loads(line) for line in (tmp_path / "out" / "rollouts.jsonl").open()]
    for row in rows:
        judged = row["prompt"].startswith("w1")
        length = float(len(row["response"].split()))
        assert row["scores"] == {"words": length, "some": 4.0 if judged else None, "one": 1.0}
        assert row["score"] == pytest.approx(length + 1.0 + (8.0 if judged else 0.0))
    assert {row["scores"]["some"] for row in rows} == {4.0, None}
    for step, metrics in enumerate(read_metrics(tmp_path / "out")):
        own = rows[6 * step : 6 * step + 6]
        assert metrics["reward/words"] == pytest.approx(sum(row["scores"]["words"] for row in own) / 6)
        assert metrics["reward/one"] == 1.0
        seen = [row for row in own if row["scores"]["some"] is not None]
        assert metrics["reward/some"] == 4.0 if seen else math.isnan(metrics["reward/some"])


# -- special tokens


def test_special_tokens_are_left_out_or_kept_but_for_the_one_that_ends_a_finished_response():
    """2 is EOS, 1 another special token, 7 and 8 are w1 and w2."""
    tokenizer = tiny_tokenizer()
    ids, finished = [[1, 7, 2], [7, 2, 8], [7, 8, 2], []], [True, False, False, False]
    plain = response_texts(tokenizer, ids, finished, special_tokens=False)
    assert [text.split() for text in plain] == [["w1"], ["w1", "w2"], ["w1", "w2"], []]
    kept = response_texts(tokenizer, ids, finished, special_tokens=True)
    assert [text.split() for text in kept] == [
        ["<|im_start|>", "w1"], ["w1", "<|im_end|>", "w2"], ["w1", "w2", "<|im_end|>"], [],
    ]  # fmt: skip


def test_a_run_with_special_tokens_shows_them_to_rewards_and_in_its_rollouts(tmp_path):
    seen = []

    def spy(prompts, responses, response_ids, **columns):
        seen.extend(zip(responses, response_ids, strict=True))
        return [0.0] * len(responses)

    folder = prepare(tmp_path)
    options = {"reward_model_path": None, "total_episodes": 12, "response_length": 24, "stop_token": "none"}
    run_ppo(config("ppo", folder, tmp_path / "out", reward_special_tokens=True, **options), [spy])
    special = {0: "<unk>", 1: "<|im_start|>", 2: "<|im_end|>"}
    assert any(set(ids) & set(special) for _, ids in seen)
    vocabulary = {i: word for word, i in tiny_tokenizer().get_vocab().items()}
    assert all(text.split() == [vocabulary[i] for i in ids] for text, ids in seen)
    logged = [json.loads(line)["response"] for line in (tmp_path / "out" / "rollouts.jsonl").open()]
    assert logged == [text for text, _ in seen]


def test_special_tokens_are_refused_where_only_an_adapter_judges(tmp_path):
    folder = prepare(tmp_path)
    with pytest.raises(UsageError, match="reward_special_tokens=True cannot be used: expected false where the only"):
        run_ppo(config("ppo", folder, tmp_path / "out", reward_special_tokens=True))
