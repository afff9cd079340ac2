"""How a response ends: its stop tokens, its budget, and what is said about it."""

from __future__ import annotations

import pytest
import torch

from rlhf_fast.model.roles import Policy
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.rollout.engine import generate
from rlhf_fast.rollout.rollout import Rollout
from rlhf_fast.rollout.sampling import Sampling, stop_ids
from rlhf_fast.runtime.errors import UsageError
from tests.model_cases import tiny_model, tokens
from tests.tiny_tokenizer import tiny_tokenizer
from tests.train.cases import run


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (2,)),
        ({"model_eos": (2,)}, (2,)),
        ({"model_eos": (9, 2)}, (9, 2)),  # a chat model with several
        ({"model_eos": (50256,)}, (2,)),  # of another tokenizer
        ({"stop_token": "none", "model_eos": (9, 2)}, ()),
        ({"stop_token_id": 7, "model_eos": (9, 2)}, (7,)),
        ({"stop_token": "none", "stop_token_id": 7}, (7,)),
    ],
)
def test_what_ends_a_response(options, expected):
    assert stop_ids(tiny_tokenizer(), **options) == expected


def test_a_stop_token_that_is_none_is_refused_and_a_tokenizer_without_eos_names_the_remedy():
    with pytest.raises(UsageError, match="expected 0 to 96"):
        stop_ids(tiny_tokenizer(), stop_token_id=97)
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match="set stop_token_id"):
        stop_ids(tokenizer)


@pytest.mark.parametrize(("eos", "expected"), [(5, (5,)), ([5, 9], (5, 9)), (None, ())])
def test_a_model_names_one_eos_several_or_none(eos, expected):
    model = tiny_model()
    model.generation_config.eos_token_id = eos
    assert SharedModel(model).eos_ids == expected


def test_any_of_several_stop_tokens_finishes_a_response_and_the_budget_truncates_it():
    policy = Policy(SharedModel(tiny_model()), None)
    stops = tuple(range(3, 20))
    responses = generate(policy, tokens(*[3] * 40), Sampling(6, stops), seeds=list(range(40)))
    for response in responses:
        assert response.finished == (response.tokens[-1] in stops)
        assert not set(response.tokens[:-1]) & set(stops)
        assert response.finished or len(response.tokens) == 6
    assert len({r.tokens[-1] for r in responses if r.finished}) > 3
    assert any(r.finished and len(r.tokens) == 6 for r in responses)  # finished at the budget is not truncated


@pytest.mark.parametrize("stop", ["custom", "none", "eos"])
def test_the_missing_eos_penalty_follows_the_stop_tokens_of_the_run(tmp_path, stop):
    free = run(tmp_path, stop_token="none").collect()
    likely = int(torch.cat([torch.tensor(response[1:]) for response in free.responses()]).mode().values)
    options = {"custom": {"stop_token_id": likely}, "none": {"stop_token": "none"}, "eos": {}}[stop]
    ppo = run(tmp_path, lambda prompts, responses: [0.0] * len(responses), missing_eos_penalty=1.5, **options)
    rollout = ppo.collect()
    end = {"custom": likely, "none": 2, "eos": 2}[stop]
    finished = [end in (response if stop == "none" else response[-1:]) for response in rollout.responses()]
    assert any(finished) and not all(finished)
    assert rollout.finished.tolist() == [done and stop != "none" for done in finished]
    assert ppo.score(rollout).total.tolist() == [0.0 if done else -1.5 for done in finished]


def test_an_empty_response_has_no_slot_and_its_score_no_position():
    rollout = Rollout.from_responses([[5], [6, 7]], [[], [8, 2]], finished=[True, True], budget=3, score_at="eos+1")
    assert rollout.cu_responses.tolist() == [0, 0, 3] and rollout.score_index.tolist() == [-1, 2]
    packed, slots = rollout.select([0])
    assert packed.rows.tolist() == slots.tolist() == []


def test_special_tokens_inside_a_response_do_not_move_its_score(tmp_path):
    """Pad is EOS here: neither a pad id nor the last token that is none tells where a response ends."""
    rollout = Rollout.from_responses([[5, 2], [2]], [[2], [8, 9, 2]], finished=[True, True], budget=3)
    assert rollout.score_index.tolist() == [0, 3]
    assert rollout.labels[rollout.score_index].tolist() == [2, 2]
    assert torch.equal(rollout.action_mask, torch.ones(4, dtype=torch.bool))
