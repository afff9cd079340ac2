"""What a reader of the rows wants to know is said before a run: once, with the count and the first place."""

from __future__ import annotations

import logging

import pytest

from rlhf_fast.data.readers import read_comparisons, read_demonstrations, read_prompts
from tests.preferences.cases import write_rows

USER = {"role": "user", "content": "a"}
SAID = {"role": "assistant", "content": "b"}


@pytest.fixture
def notices(caplog):
    caplog.set_level(logging.INFO, "rlhf_fast.notices")
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records]


def test_columns_and_keys_that_are_not_read_are_named_once_for_a_data_set(notices, tmp_path):
    rows = [{"prompt": str(i), "completion": "b", "id": i, "source": "web", "empty": None} for i in range(3)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    read_demonstrations(path)
    assert notices() == [("INFO", f"{path}: columns that are not read: id, source")]


def test_keys_of_turns_and_notes_beside_pairs_are_unread_too(notices):
    read_demonstrations([{"messages": [USER | {"time": 5, "name": "Ann"}, SAID | {"time": None}], "lang": "en"}])
    read_comparisons([{"prompt": "a", "chosen": "b", "rejected": "c", "rejected_score": 1, "label": 1}])
    assert notices() == [
        ("INFO", "the given list: columns that are not read: lang, messages.time"),
        ("INFO", "the given list: columns that are not read: label, rejected_score"),
    ]


def test_other_columns_of_prompts_go_to_rewards_and_only_keys_are_unread(notices):
    read_prompts([{"prompt": [USER | {"time": 5}], "answer": 4}])
    assert notices() == [("INFO", "the given list: columns that are not read: prompt.time")]


def test_equal_responses_that_are_ranked_are_counted(notices):
    pairs = [("a", "b"), ("b", "b"), ("c", "d"), ("e", "e")]
    read_comparisons([{"prompt": str(i), "chosen": c, "rejected": r} for i, (c, r) in enumerate(pairs)])
    ranked = [{"prompt": "z", "responses": ["x", "y", "x"], "ranks": ranks} for ranks in ([1, 2, 3], [1, 2, 1])]
    read_comparisons(ranked[:1])
    read_comparisons(ranked[1:])
    equal = "of the given list rank two equal responses differently, as if chosen were rejected; the first: row"
    assert notices() == [
        ("WARNING", f"2 of 4 comparisons {equal} 2"),
        ("WARNING", f"1 of 1 comparisons {equal} 1"),
    ]


def test_rows_that_stand_there_twice_and_prompts_with_another_answer_are_counted(notices):
    rows = [("a", "b"), ("c", "d"), ("a", "b"), ("a", "z"), ("c", "d")]
    read_demonstrations([{"prompt": prompt, "completion": reply} for prompt, reply in rows])
    assert notices() == [
        ("INFO", "2 of 5 demonstrations of the given list stand there more than once; the first: row 3, after row 1"),
        (
            "INFO",
            "1 of 5 demonstrations of the given list have the prompt of an earlier one and another answer; the first: "
            "row 4, after row 1",
        ),
    ]


def test_conversations_and_texts_repeat_too(notices):
    read_demonstrations([{"messages": [USER, SAID]}, {"messages": [USER, SAID | {"content": "c"}]}])
    read_demonstrations([{"text": "a"}, {"text": "b"}, {"text": "a"}])
    read_prompts([{"prompt": "a", "n": 1}, {"prompt": "a", "n": 2}, {"prompt": "b", "n": 3}])
    assert [message for _, message in notices()] == [
        "1 of 2 demonstrations of the given list have the prompt of an earlier one and another answer; the first: row "
        "2, after row 1",
        "1 of 3 demonstrations of the given list stand there more than once; the first: row 3, after row 1",
        "1 of 3 prompts of the given list stand there more than once; the first: row 2, after row 1",
    ]


def test_pairs_that_say_the_opposite_of_an_earlier_one_are_counted(notices):
    rows = [("a", "b", "c"), ("a", "c", "b"), ("z", "c", "b")]
    read_comparisons([{"prompt": p, "chosen": chosen, "rejected": rejected} for p, chosen, rejected in rows])
    read_comparisons([{"prompt": "a", "responses": ["x", "y"], "ranks": ranks} for ranks in ([1, 2], [2, 1], [1, 1])])
    opposite = "of the given list say the opposite of an earlier one; the first: row 2, after row 1"
    assert [message for level, message in notices() if level == "WARNING"] == [
        f"1 of 3 comparisons {opposite}",
        "1 of 3 comparisons of the given list are ties: they say which scores should be equal, not which response is "
        "better; the first: row 3",
        f"1 of 3 comparisons {opposite}",
    ]


def test_places_are_those_of_the_file_also_where_rows_are_skipped(notices, tmp_path):
    rows = [{"prompt": "a"}, {"prompt": ""}, {"prompt": "b"}, {"prompt": "a"}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    read_prompts(path, on_bad_row="skip")
    said = f"1 of 3 prompts of {path} stand there more than once; the first: {path}:4, after {path}:1"
    assert ("INFO", said) in notices()


def test_plain_text_beside_conversations_is_said(notices):
    read_prompts([{"prompt": "a"}, {"prompt": [USER]}, {"prompt": "b"}])
    read_demonstrations([{"messages": [USER, SAID]}, {"text": "c"}])
    mixed = "are plain text and the others conversations, which alone go through the chat template; the first of each:"
    assert notices() == [
        ("WARNING", f"2 of 3 prompts of the given list {mixed} row 1, row 2"),
        ("WARNING", f"1 of 2 demonstrations of the given list {mixed} row 2, row 1"),
    ]


def test_the_command_line_shows_notices(capsys, tmp_path, monkeypatch):
    from rlhf_fast import cli

    path = write_rows(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b", "id": 1}])
    verbs = {"sft": cli.Verb("rlhf_fast.train.config:SFTConfig", "run", "")}
    loaded = {"run": lambda config: read_demonstrations(config.dataset_name)}
    load = cli.load
    monkeypatch.setattr(cli, "VERBS", verbs)
    monkeypatch.setattr(cli, "load", lambda path: loaded.get(path) or load(path))
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging.getLogger("rlhf_fast.notices"), "level", logging.NOTSET)
    assert cli.main(["sft", "--dataset_name", path]) == 0
    assert "columns that are not read: id" in capsys.readouterr().err
