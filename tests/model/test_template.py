"""Chat templates that fail or do not end are refused in words, in any thread, and leave nothing behind."""

from __future__ import annotations

import threading
import time

import pytest

from rlhf_fast.model import template
from rlhf_fast.model.template import opening, render, without_end
from rlhf_fast.runtime.errors import UsageError
from tests.tiny_tokenizer import tiny_tokenizer

MESSAGES = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2", "weight": 0}]
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = i * j %}{% endfor %}{% endfor %}"


def with_template(text: str):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = text
    return tokenizer


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for m in messages %}{{ m.content + loop.index }}{% endfor %}", "TypeError: can only concatenate str"),
        ("{{ messages[7].content }}", "has no element 7|list object"),
        ("{% for i in range(10**12) %}{% endfor %}", "OverflowError: Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ raise_exception('no users here') }}", "no users here"),
    ],
)
def test_a_template_that_fails_is_refused_with_its_words(text, message):
    with pytest.raises(UsageError, match=rf"the chat template refuses a conversation of user, assistant: .*{message}"):
        render(with_template(text), MESSAGES)


def test_a_template_that_does_not_end_is_refused_in_any_thread_and_leaves_none_running(monkeypatch):
    monkeypatch.setattr(template, "SECONDS", 0.4)
    tokenizer, errors = with_template(ENDLESS), []

    def refused() -> None:
        with pytest.raises(
            UsageError, match=r"the chat template has not ended within 0\.4 seconds. Give another template"
        ):
            render(tokenizer, MESSAGES)
        errors.append(1)

    began = time.monotonic()
    refused()
    other = threading.Thread(target=refused)
    other.start()
    other.join(5)
    assert time.monotonic() - began < 5 and len(errors) == 2 and not other.is_alive()
    assert (
        render(tiny_tokenizer(), MESSAGES[:1]) == "<|im_start|> user w1 <|im_end|> "
    )  # and later ones are not touched
    time.sleep(1)


def test_the_time_limit_ends_its_own_thread():
    render(tiny_tokenizer(), MESSAGES)
    deadline = time.monotonic() + 10
    while template._watch.thread is not None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert template._watch.thread is None and not template._watch.started
    render(tiny_tokenizer(), MESSAGES)
    assert template._watch.thread is not None


def test_the_weight_of_a_turn_is_not_shown_to_the_template():
    assert render(with_template("{{ messages[1] | tojson }}"), MESSAGES) == '{"role": "assistant", "content": "w2"}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [("w1 </s>", "w1 "), ("w1</s></s>\n", "w1"), ("w1 ", "w1 "), ("</s>w1", "</s>w1"), ("", ""), ("</s>", "")],
)
def test_a_text_loses_the_eos_that_it_ends_with_and_nothing_else(text, expected):
    assert without_end(text, "</s>") == expected
    assert without_end(text, None) == text


def test_special_tokens_before_plain_text_are_none_where_it_begins_with_them():
    from tokenizers import processors

    tokenizer = tiny_tokenizer()
    assert opening(tokenizer, "w1") == []
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    assert opening(tokenizer, "w1 w2") == [1]
    assert opening(tokenizer, "<|im_start|> w1") == []
