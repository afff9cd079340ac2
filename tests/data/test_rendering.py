"""What is said of how rows became text, and kept beside what was trained on them."""

from __future__ import annotations

import json
import logging

import pytest

from rlhf_fast.data.encode import encode_demonstration, encode_prompt, encode_replies
from rlhf_fast.data.fitting import TooLong, encode_rows
from rlhf_fast.data.rendering import (
    Rendering,
    announce_comparisons,
    announce_demonstrations,
    announce_prompts,
    compare,
    trained_stop,
)
from rlhf_fast.data.schema import Comparison, Demonstration, PromptRow
from rlhf_fast.model.template import Endless
from rlhf_fast.runtime.errors import UsageError
from tests.data.templates import CHATML, LLAMA3, THINKS, assistant, user


@pytest.fixture
def lines(caplog):
    """What was said since the last call."""
    caplog.set_level(logging.INFO, "rlhf_fast.notices")

    def said() -> list[str]:
        messages = [record.getMessage() for record in caplog.records if record.name == "rlhf_fast.notices"]
        caplog.clear()
        return messages

    return said


def demonstrations(tokenizer, *rows: Demonstration) -> Rendering:
    parts = [encode_demonstration(tokenizer, row, max_length=999) for row in rows]
    return announce_demonstrations(tokenizer, rows, parts, "rows.jsonl")


def prompts(tokenizer, *rows: PromptRow) -> Rendering:
    return announce_prompts(tokenizer, rows, [encode_prompt(tokenizer, row.prompt) for row in rows], "rows.jsonl")


def test_a_stage_shows_its_first_row_as_the_model_sees_it(make_tokenizer, lines):
    tokenizer = make_tokenizer()
    chat = demonstrations(tokenizer, Demonstration(messages=[user("hello"), assistant("well")]))
    assert lines() == [
        "rows.jsonl: demonstrations go to the model through the chat template. The first, what is learnt between « and "
        "»:\n  <|im_start|>user\\nhello<|im_end|>\\n<|im_start|>assistant\\n«well<|im_end|>»"
    ]
    text = prompts(tokenizer, PromptRow("hello"))
    assert lines() == [
        "rows.jsonl: prompts go to the model as plain text; the tokenizer's chat template is not used. The first:\n"
        "  hello"
    ]
    assert (chat.chat, chat.text, text.chat, text.text) == (True, False, False, True)
    row = Comparison("hello", (" well", " so"), (1, 2))
    prompt, replies = encode_replies(tokenizer, row.prompt, row.responses)
    announce_comparisons(tokenizer, [row], [[prompt + reply for reply in replies]], [prompt], "pairs.jsonl")
    assert lines()[0].endswith("between « and »:\n  hello« well<|im_end|>»")


def test_spaces_that_prompts_end_with_are_counted_and_newlines_are_not(make_tokenizer, lines):
    prompts(make_tokenizer(), *map(PromptRow, ("a: ", "b:", "c:\n", "d:\n ")))
    assert lines()[1].startswith("rows.jsonl: 2 of 4 prompts end with spaces, which are left to the response")
    prompts(make_tokenizer(), PromptRow([user("hello ")]))
    assert len(lines()) == 1


def test_what_the_template_does_beyond_the_row_is_said(make_tokenizer, lines):
    talk = [user("hello"), assistant("well"), user("how?"), assistant("fine")]
    demonstrations(make_tokenizer(template=THINKS), Demonstration(messages=talk), Demonstration(messages=talk[:2]))
    assert "rewrites earlier turns in 1 of 2 conversations; their turns are learnt as 2 sequences" in lines()[1]
    demonstrations(make_tokenizer(template=CHATML), Demonstration(messages=talk))
    assert len(lines()) == 1
    rows = [Demonstration([user("hello")], reply) for reply in (" well\n", "well", "fine ")]
    demonstrations(make_tokenizer(template=LLAMA3), *rows)
    assert lines()[1] == "rows.jsonl: the chat template trims the white space around 2 replies"
    demonstrations(make_tokenizer(template=CHATML), *rows)
    assert len(lines()) == 1
    opens = CHATML.replace("assistant\n{%", "assistant\n<think>{%")
    prompts(make_tokenizer(template=opens), PromptRow([user("hello")]))
    assert lines()[1] == "the chat template begins each response with '<think>', which is no part of the response"


def record(folder, tokenizer, *rows, **more) -> str:
    folder.mkdir()
    rendering = Rendering.of(tokenizer, rows)
    Rendering(rendering.chat, rendering.text, rendering.chat_template, **more).save(folder)
    return str(folder)


def test_a_model_that_is_given_what_it_was_not_trained_on_is_named(make_tokenizer, tmp_path, lines):
    tokenizer = make_tokenizer()
    chat, text = record(tmp_path / "chat", tokenizer, [user("a")]), record(tmp_path / "text", tokenizer, "a")
    both = record(tmp_path / "both", tokenizer, "a", [user("a")])
    plain, talk = Rendering.of(tokenizer, ["b"]), Rendering.of(tokenizer, [[user("b")]])
    compare(plain, "rows.jsonl", chat, text, both, None, str(tmp_path / "a base of which nothing is known"))
    assert lines() == [
        f"{chat} was trained on prompts through the chat template; those of rows.jsonl go in as plain text"
    ]
    compare(talk, "rows.jsonl", chat, text, both)
    assert lines() == [
        f"{text} was trained on prompts as plain text; those of rows.jsonl go in through the chat template"
    ]
    compare(Rendering.of(make_tokenizer(template=LLAMA3), [[user("b")]]), "rows.jsonl", chat)
    assert lines() == [f"{chat} was trained through another chat template than that of the prompts of rows.jsonl"]
    stops = record(tmp_path / "stops", tokenizer, "a", stop_token_id=7)
    compare(plain, "rows.jsonl", stops)
    assert lines() == [f"{stops} was trained on responses that end with the token 7 (stop_token_id); here EOS"]
    assert (trained_stop(stops), trained_stop(text), trained_stop(str(tmp_path))) == (7, None, None)


def test_a_record_keeps_what_the_model_was_trained_on_before(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer()
    before = Rendering.of(tokenizer, [[user("a")]])
    after = Rendering.of(tokenizer, ["b"]).after(before)
    assert (after.chat, after.text, after.chat_template) == (True, True, before.chat_template)
    after.save(tmp_path)
    assert Rendering.read(tmp_path) == after
    (tmp_path / "rendering.json").write_text(json.dumps({"chat": True}))
    with pytest.raises(UsageError, match=r"cannot read .*rendering.json"):
        Rendering.read(tmp_path)


def test_rows_that_are_too_long_are_counted_apart_from_bad_ones(caplog):
    def encode(row: int) -> int:
        if row > 8:
            raise TooLong("too long")
        if row % 2:
            raise UsageError("odd")
        return row

    def endless(row: int) -> int:
        raise Endless("the chat template has not ended")

    with pytest.raises(UsageError, match="row 1 of here: the chat template has not ended"):
        encode_rows([2, 4], endless, noun="row", source="here", on_bad_row="skip")
    fitted = encode_rows([2, 3, 9, 4, 10], encode, noun="row", source="here", on_bad_row="skip")
    assert list(fitted) == [(2, 2), (4, 4)] and len(fitted) == 2
    assert fitted.too_long == 2 and len(fitted.skipped) == 3
    assert "skipped 3 of 5 rows of here, 2 of them for their length. The first: row 2: odd" in caplog.text
