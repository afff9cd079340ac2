"""What each format's columns mean, beyond the plain cases."""

from __future__ import annotations

import pytest

from rlhf_fast.data.readers import read_comparisons, read_demonstrations, read_prompts
from rlhf_fast.data.schema import Demonstration, PromptRow
from rlhf_fast.runtime.errors import UsageError

USER = {"role": "user", "content": "hi"}
GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}


def comparison(**row):
    return read_comparisons([row]).rows[0]


def refused(reader, row) -> str:
    with pytest.raises(UsageError) as caught:
        reader([row])
    return str(caught.value)


def test_the_implicit_prompt_of_text_ends_where_the_last_assistant_turn_begins():
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    row = comparison(chosen=f"{start} I think so", rejected=f"{start} I think not")
    assert (row.prompt, row.responses) == (start, (" I think so", " I think not"))


def test_an_implicit_prompt_ends_between_words():
    row = comparison(chosen="say it: really", rejected="say it: rarely")
    assert (row.prompt, row.responses) == ("say it: ", ("really", "rarely"))


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("yes", "no", "share no beginning"),
        ("x\n\nAssistant: a\n\nAssistant: b", "x\n\nAssistant: c\n\nAssistant: b", "differ before the last turn"),
        ([USER, GOOD, USER, GOOD], [USER, BAD, USER, GOOD], "differ before the last message"),
        ([GOOD], [BAD], "hold no prompt"),
        ([USER], [USER, BAD], "chosen ends with user"),
    ],
)
def test_pairs_without_a_common_prompt_are_refused(chosen, rejected, reason):
    assert reason in refused(read_comparisons, {"chosen": chosen, "rejected": rejected})


def test_whole_conversations_hold_their_prompt_though_a_column_repeats_its_text():
    row = {"prompt": "hi", "chosen": [USER, GOOD], "rejected": [USER, BAD], "score": 3}
    assert comparison(**row).prompt == [USER]
    assert comparison(**row).responses == ("good", "bad")
    assert comparison(**row).meta == {"score": 3}
    assert read_prompts([row]).rows[0].prompt == [USER]


@pytest.mark.parametrize(
    ("votes", "probability", "ranks"),
    [([1, 1, 0], 2.5 / 3, (1, 2)), ([1, 2, 0], 0.5, (1, 1)), ([2, 2, 1], 1 / 3, (2, 1)), ([2], 0.0, (2, 1))],
)
def test_votes_give_a_probability_with_half_a_vote_for_a_tie(votes, probability, ranks):
    row = comparison(prompt="a", responses=["b", "c"], votes=votes)
    assert row.probability == pytest.approx(probability)
    assert row.ranks == ranks


def test_a_probability_is_kept_and_may_be_digits_of_a_csv():
    assert comparison(prompt="a", chosen="b", rejected="c", probability="0.75").probability == 0.75
    assert comparison(prompt="a", chosen="b", rejected="c").probability is None
    assert comparison(prompt="a", chosen="b", rejected="c", probability=0.5).ranks == (1, 1)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"responses": ["b"], "ranks": [1]}, "expected a list of two or more"),
        ({"responses": ["b", "c"], "ranks": [1]}, "ranks is [1] for 2 responses"),
        ({"responses": ["b", "c"], "ranks": [1, float("nan")]}, "a rank is nan; expected a number"),
        ({"responses": ["b", "c"], "ranks": [1, True]}, "a rank is True; expected a number"),
        ({"responses": ["b", "c"], "ranks": [1, None]}, "a rank is None; expected a number"),
        ({"responses": ["b", None], "ranks": [1, 2]}, "a response is None; expected text"),
        ({"responses": ["b", "c"], "votes": [1, 3]}, "votes are [1, 3]; expected"),
        ({"responses": ["b", "c"], "votes": []}, "votes are []; expected"),
        ({"responses": ["b", "c", "d"], "votes": [1], "ranks": [1, 2, 3]}, "for two only"),
        ({"chosen": "b", "rejected": "c", "probability": 1.5}, "from 0 to 1"),
        ({"chosen": "b", "rejected": "c", "probability": 0.2}, "the order says otherwise"),
        ({"chosen": "b", "rejected": float("nan")}, "rejected is nan; expected text"),
        ({"chosen": "b", "rejected": " "}, "rejected is empty"),
        ({"chosen": "b"}, "columns are prompt, chosen; expected prompt+responses+ranks"),
    ],
)
def test_bad_comparisons_say_why(columns, reason):
    assert reason in refused(read_comparisons, {"prompt": "a", **columns})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": None, "completion": "b"}, "prompt is None; expected text"),
        ({"prompt": [USER, GOOD], "completion": "b"}, "prompt ends with assistant"),
        ({"prompt": [USER], "completion": [USER]}, "completion ends with user"),
        ({"prompt": [USER], "completion": [GOOD, GOOD]}, "completion has 2 messages"),
        ({"messages": []}, "messages is []; expected a list of messages"),
        ({"messages": [{"role": "narrator", "content": "a"}]}, "a role of system, user, assistant, tool"),
        (
            {"messages": [USER, {"role": "assistant", "content": None}]},
            "the content of a message of the assistant is None",
        ),
        ({"messages": ["hi"]}, "messages holds 'hi'"),
        ({"conversations": [{"from": "bing", "value": "a"}]}, "from 'bing'; expected human"),
        ({"conversations": "a"}, "conversations is 'a'; expected a list of messages"),
        ({"instruction": " ", "input": float("nan"), "output": "b"}, "instruction and input are empty"),
        ({"instruction": "a", "input": 3, "output": "b"}, "instruction or input is 3; expected text"),
        ({"text": ""}, "text is empty"),
        ({"completion": "b"}, "expected messages, or conversations, or prompt+completion"),
    ],
)
def test_bad_demonstrations_say_why(row, reason):
    assert reason in refused(read_demonstrations, row)


def test_messages_go_before_a_prompt_column_for_demonstrations_and_prompts_alike():
    row = {"prompt": "hi", "messages": [USER, GOOD]}
    assert read_demonstrations([row]).rows == [Demonstration(messages=[USER, GOOD])]
    assert read_prompts([row]).rows == [PromptRow([USER], {"prompt": "hi"})]


def test_an_input_alone_serves_where_the_instruction_is_empty():
    assert read_demonstrations([{"instruction": "", "input": "a", "output": "b"}]).rows == [Demonstration("a", "b")]


def test_message_columns_beyond_role_and_content_are_left_out():
    row = {"messages": [{**USER, "name": None}, {**GOOD, "weight": 1}]}
    assert read_demonstrations([row]).rows == [Demonstration(messages=[USER, GOOD])]


@pytest.mark.parametrize(
    ("row", "prompt", "columns"),
    [
        ({"prompt": "a", "answer": 4, "input": "kept"}, "a", {"answer": 4, "input": "kept"}),
        ({"prompt": [USER], "id": 1}, [USER], {"id": 1}),
        ({"prompt": "a", "completion": "b"}, "a", {"completion": "b"}),
        ({"messages": [USER, GOOD, USER]}, [USER, GOOD, USER], {}),
        ({"messages": [USER, GOOD, USER, GOOD]}, [USER, GOOD, USER], {}),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "x"}]}, [USER], {}),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "a", {"chosen": "b", "rejected": "c"}),
        ({"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2]}, "a", {"responses": ["b", "c"], "ranks": [1, 2]}),
        ({"instruction": "do", "input": "x", "output": "y"}, "do\n\nx", {"output": "y"}),
        ({"input": "x", "output": "y"}, "x", {"output": "y"}),
    ],
)
def test_read_prompts_takes_the_prompt_of_any_format_and_keeps_the_other_columns(row, prompt, columns):
    assert read_prompts([row]).rows == [PromptRow(prompt, columns)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "a"}, "columns are text; expected messages"),
        ({"prompt": "\n"}, "prompt is empty"),
        ({"messages": [GOOD]}, "the conversation before the reply is []"),
        ({"messages": [USER, GOOD, GOOD]}, "the conversation before the reply ends with assistant"),
    ],
)
def test_bad_prompts_say_why(row, reason):
    assert reason in refused(read_prompts, row)
