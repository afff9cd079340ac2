"""Columns that change what a row means are obeyed or refused by name, in demonstrations, comparisons and prompts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlhf_fast.data import columns, turns, values
from rlhf_fast.data.readers import read_comparisons, read_demonstrations, read_prompts
from rlhf_fast.data.schema import Comparison, Demonstration, PromptRow
from rlhf_fast.runtime.errors import UsageError

READERS = {"demonstrations": read_demonstrations, "comparisons": read_comparisons, "prompts": read_prompts}


def user(text):
    return {"role": "user", "content": text}


def said(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


def refused(reader, row) -> str:
    with pytest.raises(UsageError) as caught:
        reader([row])
    return str(caught.value)


ASK = {"instruction": "Name a tree.", "output": "Oak."}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({**ASK, "system": "Be brief."}, Demonstration([system("Be brief."), user("Name a tree.")], "Oak.")),
        (
            {"prompt": "Name a tree.", "completion": "Oak.", "system_prompt": "Be brief."},
            Demonstration([system("Be brief."), user("Name a tree.")], "Oak."),
        ),
        (
            {"messages": [user("a"), said("b")], "system_message": "Rhyme."},
            Demonstration(messages=[system("Rhyme."), user("a"), said("b")]),
        ),
        (
            {"conversations": [system("Rhyme."), user("a"), said("b")], "system": "Rhyme."},
            Demonstration(messages=[system("Rhyme."), user("a"), said("b")]),
        ),
        ({**ASK, "system": None, "history": [], "tools": "[]"}, Demonstration("Name a tree.", "Oak.")),
        (
            {**ASK, "history": [["Name a fish.", "Cod."], ["A bird?", "Wren."]]},
            Demonstration(
                messages=[
                    user("Name a fish."),
                    said("Cod."),
                    user("A bird?"),
                    said("Wren."),
                    user("Name a tree."),
                    said("Oak."),
                ]
            ),
        ),
        (
            {**ASK, "history": '[["Name a fish.", "Cod."]]'},
            Demonstration(messages=[user("Name a fish."), said("Cod."), user("Name a tree."), said("Oak.")]),
        ),
        (
            {"prompt": "a", "completion": "b", "history": [user("x"), said("y", weight=0)]},
            Demonstration(messages=[user("x"), said("y", weight=0), user("a"), said("b")]),
        ),
    ],
)
def test_a_system_text_and_a_history_make_a_conversation_of_a_demonstration(row, expected):
    assert read_demonstrations([row]).rows == [expected]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "a", "system": "Rhyme."}, [system("Rhyme."), user("a")]),
        ({"question": "a", "history": [["x", "y"]]}, [user("x"), said("y"), user("a")]),
        ({"prompt": [user("a")], "system": "Rhyme."}, [system("Rhyme."), user("a")]),
        ({"messages": [user("x"), said("y", weight=0), user("a"), said("b")]}, [user("x"), said("y"), user("a")]),
        ({"query": "a"}, "a"),
    ],
)
def test_prompts_have_the_same_context_and_no_weights(row, prompt):
    assert read_prompts([row]).rows == [PromptRow(prompt)]


def test_one_row_with_a_system_text_makes_conversations_of_all_questions():
    rows = [{"prompt": "a", "completion": "b", "system": ""}, {"prompt": "c", "completion": "d", "system": "Rhyme."}]
    assert [row.prompt for row in read_demonstrations(rows).rows] == [[user("a")], [system("Rhyme."), user("c")]]
    pairs = [{"question": q, "chosen": "x", "rejected": "y", "system": s} for q, s in (("a", None), ("c", "Rhyme."))]
    assert [row.prompt for row in read_comparisons(pairs).rows] == [[user("a")], [system("Rhyme."), user("c")]]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "Which tree?", "input": ""}, "Which tree?"),
        ({"instruction": "Which tree?", "input": "Old ones."}, "Which tree?\n\nOld ones."),
        ({"question": "Which tree?"}, "Which tree?"),
        ({"query": "Which tree?"}, "Which tree?"),
        ({"input": "Which tree?"}, "Which tree?"),
        ({"prompt": None, "question": "Which tree?"}, "Which tree?"),
        ({"question": "Which tree?", "system": "Guess."}, [system("Guess."), user("Which tree?")]),
        ({"messages": [user("Which tree?")]}, [user("Which tree?")]),
        ({"messages": [user("Which tree?"), said("It is oak.")]}, [user("Which tree?")]),
        ({"conversations": [{"from": "human", "value": "Which tree?"}]}, [user("Which tree?")]),
        ({"conversations": [system("Guess."), user("Tree?")], "prompt": "Tree?"}, [system("Guess."), user("Tree?")]),
    ],
)
@pytest.mark.parametrize("as_message", [False, True])
def test_the_question_beside_a_pair_is_its_prompt_and_not_what_the_answers_begin_with(row, prompt, as_message):
    pair = {"chosen": "It is oak.", "rejected": "It is moss."}
    if as_message:
        pair = {name: {"from": "gpt", "value": text} for name, text in pair.items()}
    assert read_comparisons([row | pair]).rows == [Comparison(prompt, ("It is oak.", "It is moss."), (1, 2))]
    columns = {} if "messages" in row or "conversations" in row else pair
    if "messages" not in row and "conversations" not in row:
        assert read_prompts([row | pair]).rows == [PromptRow(prompt, columns)]


def test_a_question_that_both_answers_begin_with_is_their_prompt_already():
    row = {"question": "Which tree?", "chosen": "Q: Which tree? A: oak", "rejected": "Q: Which tree? A: moss"}
    expected = Comparison("Q: Which tree? A: ", ("oak", "moss"), (1, 2), meta={"question": "Which tree?"})
    assert read_comparisons([row]).rows == [expected]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"post": "My cat is sad today", "chosen": "The cat", "rejected": "The dog"}, "post may hold the prompt"),
        (
            {"article": "It rained all day", "chosen": "It rained", "rejected": "It snowed"},
            "article may hold the prompt",
        ),
        (
            {"prompt": "a", "instruction": "Rhyme", "chosen": "b", "rejected": "c"},
            "instruction stands beside the prompt",
        ),
        ({"prompt": "a", "input": "Rhyme", "responses": ["b", "c"], "ranks": [1, 2]}, "input stands beside the prompt"),
        (
            {"question": "a", "query": "b", "chosen": "c", "rejected": "d"},
            "question and query hold different questions",
        ),
        ({"question": "a", "choices": ["x"], "chosen": "c", "rejected": "d"}, "choices would be left out"),
        (
            {"messages": [user("a"), said("b")], "chosen": "c", "rejected": "d"},
            "messages before chosen and rejected ends",
        ),
        ({"messages": [user("a")], "prompt": "z", "chosen": "c", "rejected": "d"}, "messages and another prompt"),
        ({"system": "Rhyme.", "chosen": "a b", "rejected": "a c"}, "expected a prompt column"),
        (
            {"prompt": "a", "chosen": [said("b", tool_calls=[{"name": "f", "arguments": {}}])], "rejected": "c"},
            "tool_calls",
        ),
        ({"prompt": "a", "chosen": [said("b", reasoning_content="Hm.")], "rejected": "c"}, "has reasoning_content"),
        ({"prompt": None, "chosen": "a b", "rejected": "a c"}, "prompt is None"),
    ],
)
def test_a_pair_whose_prompt_would_be_lost_is_refused(row, reason):
    assert reason in refused(read_comparisons, row)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [system("a"), user("b"), said("c")], "system": "z"}, "another system message"),
        ({**ASK, "system": "a", "system_prompt": "b"}, "system and system_prompt hold different texts"),
        ({**ASK, "history": "What was said"}, "history is 'What was said'; expected"),
        ({**ASK, "history": [["only a question"]]}, "expected a list of [question, answer] pairs"),
        ({"messages": [user("b"), said("c")], "history": [["x", "y"]]}, "history stands beside a conversation"),
        ({"text": "a", "system": "b"}, "stands beside a text"),
        ({"prompt": "Name a tree.", "completion": "Oak.", "input": "In French"}, "input stands beside the prompt"),
        (
            {"instruction": "Who?", "context": "Ann met Bo.", "output": "Bo."},
            "context would be left out of the question",
        ),
        ({"input": "Which?", "options": ["a", "b"], "output": "a"}, "options would be left out of the question"),
        ({**ASK, "tools": {"name": "f"}}, "tools is {'name': 'f'}; expected a list"),
        ({**ASK, "tools": "find, send"}, "tools is 'find, send'; expected JSON"),
        ({**ASK, "tools": [{"parameters": {}}]}, "expected a function with its name"),
    ],
)
def test_context_that_cannot_be_obeyed_is_refused(row, reason):
    assert reason in refused(read_demonstrations, row)


GOOD = {
    "demonstrations": {"prompt": "a", "completion": "b"},
    "comparisons": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "prompts": {"prompt": "a"},
}
COUNTING = {"label": [False, 0, "False"], "kto_tag": [False], "weight": [0, 0.5, "2"], "train": [False, 0]}
NEUTRAL = {"label": [True, 1, "true", "spam"], "kto_tag": [True], "weight": [1, "1", "3 kg"], "train": [True, "yes"]}


@pytest.mark.parametrize("refusal", columns.REFUSALS, ids=lambda refusal: refusal.columns[0])
@pytest.mark.parametrize("kind", READERS)
def test_each_column_that_is_not_served_is_refused_by_name_where_it_would_count(refusal, kind):
    for name in refusal.columns:
        if kind not in refusal.kinds:
            assert len(READERS[kind]([GOOD[kind] | {name: False}]).rows) == 1
            continue
        for value in COUNTING.get(name, [0.5, 0] if "weight" in name else ["something"]):
            reason = refused(READERS[kind], GOOD[kind] | {name: value})
            assert f"the column {name} is {value!r} and is not served: {refusal.why}" in reason
        for value in (None, "", [], float("nan"), *NEUTRAL.get(name, [])):
            assert len(READERS[kind]([GOOD[kind] | {name: value}]).rows) == 1


def test_a_bad_completion_is_left_out_and_counted_and_the_class_of_a_text_is_none():
    rows = [{"prompt": "a", "completion": c, "label": c == "good"} for c in ("good", "bad")]
    read = read_demonstrations(rows, on_bad_row="skip")
    assert read.rows == [Demonstration("a", "good")]
    assert len(read.skipped) == 1 and "label is False" in read.skipped[0]
    assert read_demonstrations([{"text": "What a film", "label": 0}]).rows == [Demonstration(completion="What a film")]


def test_scores_beside_a_pair_are_notes():
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "chosen_score": 8.5, "rejected_score": 2, "label": 0}
    assert read_comparisons([row]).rows[0].meta == {"chosen_score": 8.5, "rejected_score": 2, "label": 0}


DATA_PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
NAMES = {"demonstrations": "SFT", "comparisons": "reward", "prompts": "prompts"}


def test_the_docs_list_each_column_and_key_that_is_refused_with_its_rows():
    table = re.findall(r"^\| (`[^|]*`) \| ([^|`]*) \| [^|]* \|$", DATA_PAGE.partition("## Refused")[2], re.MULTILINE)
    listed = {(tuple(re.findall(r"`(\w+)`", names)), kinds) for names, kinds in table}
    assert listed == {(r.columns, ", ".join(NAMES[kind] for kind in r.kinds)) for r in columns.REFUSALS}
    (keys,) = re.findall(r"^Keys of turns that are refused: (.*)\.$", DATA_PAGE, re.MULTILINE)
    assert re.findall(r"`(\w+)`", keys) == list(turns.REFUSED)


def test_the_docs_list_each_format_role_and_column_that_is_read():
    for shapes in columns._SHAPES.values():
        for shape in shapes:
            assert " + ".join(f"`{name}`" for name in shape) in DATA_PAGE
    for name in (*columns.CONTEXT, *values.QUESTION, *values.OF_A_QUESTION, *turns.ROLES, *turns.SHAREGPT, *turns.READ):
        assert f"`{name}`" in DATA_PAGE, name
