"""Turns of a conversation: roles of both forms, which are learnt, tool calls, thoughts, parts."""

from __future__ import annotations

import pytest

from rlhf_fast.data.readers import read_comparisons, read_demonstrations, read_prompts
from rlhf_fast.data.schema import Demonstration
from rlhf_fast.runtime.errors import UsageError

USER = {"role": "user", "content": "2+2?"}
SAID = {"role": "assistant", "content": "4"}
SHOWN = {"role": "assistant", "content": "5", "weight": 0}


def messages(turns, column="messages"):
    return read_demonstrations([{column: turns}]).rows[0].messages


def refused(row, reader=read_demonstrations) -> str:
    with pytest.raises(UsageError) as caught:
        reader([row])
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"weight": 0}, {"weight": 0}),
        ({"weight": 1}, {}),
        ({"train": False}, {"weight": 0}),
        ({"training": False, "weight": 0.0}, {"weight": 0}),
        ({"loss": True}, {}),
        ({"weight": None}, {}),
    ],
)
def test_a_turn_that_is_not_to_be_learnt_has_weight_0_in_any_format(given, kept):
    turns = [USER, {"role": "assistant", "content": "5", **given}, USER, SAID]
    assert messages(turns) == [USER, {"role": "assistant", "content": "5", **kept}, USER, SAID]
    sharegpt = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "5", **given}, USER, SAID]
    assert messages(sharegpt, "conversations") == [USER, {"role": "assistant", "content": "5", **kept}, USER, SAID]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([USER, SHOWN], "weight 0 on every turn of the assistant"),
        ([USER, SAID | {"weight": 0.5}], "has weight 0.5; expected 0 (shown only) or 1"),
        ([USER, SAID | {"weight": "0"}], "has weight '0'; expected 0"),
        ([USER, SAID | {"weight": 1, "train": False}], "expected them to agree"),
        ([USER | {"weight": 1}, SAID], "only the assistant's turns are learnt"),
        ([USER | {"train": True}, SAID], "only the assistant's turns are learnt"),
    ],
)
def test_a_weight_that_cannot_be_obeyed_is_refused(turns, reason):
    assert reason in refused({"messages": turns})


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
ANSWER = {"role": "tool", "content": "rain", "tool_call_id": "c1", "name": "weather"}


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}]},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "weather", "arguments": {"city": "Oslo"}}]},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
    ],
)
def test_tool_calls_of_any_form_have_arguments_as_a_dict_and_no_content(turn):
    read = messages([USER, turn, ANSWER, SAID])
    assert read[1]["role"] == "assistant" and read[1]["content"] is None
    assert [call["function"] for call in read[1]["tool_calls"]] == [CALL["function"]]
    assert read[2:] == [ANSWER, SAID]


def test_tools_are_kept_with_the_row_and_a_bare_function_is_wrapped():
    tool = {"name": "weather", "parameters": {"type": "object"}}
    wrapped = {"type": "function", "function": tool}
    for given in ([tool], [wrapped], '[{"name": "weather", "parameters": {"type": "object"}}]'):
        assert read_demonstrations([{"messages": [USER, SAID], "tools": given}]).rows[0].tools == [wrapped]
        assert read_prompts([{"messages": [USER], "tools": given}]).rows[0].tools == [wrapped]
        row = read_comparisons([{"prompt": "2+2?", "chosen": "4", "rejected": "5", "tools": given}]).rows[0]
        assert (row.prompt, row.tools) == ([USER], [wrapped])


def test_a_completion_that_calls_a_tool_is_learnt_and_the_prompts_own_turns_are_not():
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    row = {"prompt": [USER, SAID, USER], "completion": [call, ANSWER, SAID]}
    expected = Demonstration(messages=[USER, SAID | {"weight": 0}, USER, call, ANSWER, SAID])
    assert read_demonstrations([row]).rows == [expected]
    thought = SAID | {"reasoning_content": "Two and two."}
    assert read_demonstrations([{"prompt": "2+2?", "completion": thought}]).rows[0].messages == [USER, thought]


def test_a_prompt_may_end_with_the_answer_of_a_tool():
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert read_prompts([{"messages": [USER, call, ANSWER, SAID]}]).rows[0].prompt == [USER, call, ANSWER]
    assert read_prompts([{"prompt": [USER, call, ANSWER]}]).rows[0].prompt == [USER, call, ANSWER]


def test_contents_in_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?", "image_url": None}]
    assert messages([USER | {"content": parts}, SAID]) == [USER, SAID]
    assert read_prompts([{"prompt": [USER | {"content": parts}]}]).rows[0].prompt == [USER]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([USER | {"content": [{"type": "image_url", "image_url": "x"}]}, SAID], "expected parts of type text"),
        ([USER | {"content": ["2+2?"]}, SAID], "expected parts of type text"),
        ([USER, SAID | {"images": ["a.png"]}], "has images, which is not read"),
        ([USER, SAID | {"audio": {"id": "a"}}], "has audio, which is not read"),
        (
            [USER, SAID | {"function_call": {"name": "f"}}],
            "has function_call, which is not read: calls are read from tool",
        ),
        ([USER, SAID | {"refusal": "No."}], "has refusal, which is not read"),
        ([USER, SAID | {"thinking": "Hm."}], "thoughts are read from reasoning_content"),
        ([USER | {"reasoning_content": "Hm."}, SAID], "a message of the user has reasoning_content"),
        ([USER | {"tool_calls": [CALL]}, SAID], "a message of the user has tool_calls"),
        ([USER, SAID | {"tool_calls": [{"id": "c1"}]}], "expected a function with name and arguments"),
        (
            [USER, SAID | {"tool_calls": [{"name": "f", "arguments": "{city"}]}],
            "arguments of f is '{city'; expected JSON",
        ),
        (
            [USER, SAID | {"tool_calls": [{"name": "f", "arguments": [1]}]}],
            "arguments of f is [1]; expected a JSON obj",
        ),
        ([USER, {"from": ["gpt"], "value": "4"}], "a turn is from ['gpt']; expected human"),
        ([USER, {"role": ["assistant"], "content": "4"}], "a role of system, user, assistant, tool"),
        ([{"role": "developer", "content": "Rhyme."}, USER, SAID], "a role of system, user, assistant, tool"),
        ([USER, {"from": "function_call", "value": "call weather"}], "tool_calls is 'call weather'; expected JSON"),
    ],
)
def test_what_a_turn_holds_beyond_text_and_calls_is_refused_by_name(turns, reason):
    assert reason in refused({"messages": turns})


def test_nulls_that_arrow_adds_are_no_keys(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    other = {"type": "function", "function": {"name": "time", "arguments": {"zone": "CET"}}}
    tools = [
        {"type": "function", "function": {"name": name, "parameters": {key: "string"}}} for name, key in ("az", "by")
    ]
    rows = [
        {"messages": [USER, call, ANSWER, SAID], "tools": tools[:1], "note": {"a": None}},
        {
            "messages": [USER, SHOWN, USER, call | {"tool_calls": [other]}, ANSWER, SAID],
            "tools": tools[1:],
            "note": {"a": 1},
        },
    ]
    write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    sources = [tmp_path / "a.parquet"]
    try:
        from datasets import Dataset
    except ImportError:
        pass
    else:
        sources.append(Dataset.from_list(rows))
    for source in sources:
        read = read_demonstrations(source).rows
        assert [row.messages for row in read] == [row["messages"] for row in rows]
        assert [row.tools for row in read] == [row["tools"] for row in rows]
        prompts = read_prompts(source).rows
        assert [row.columns for row in prompts] == [{"note": {"a": None}}, {"note": {"a": 1}}]
