"""What is shown of texts from elsewhere: no command of a terminal, no secret of an address."""

from __future__ import annotations

import pytest

from rlhf_fast.runtime.shown import hide_secrets, printable, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, größer, 日本 🙂\n\ttwo", "plain, größer, 日本 🙂\n\ttwo"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("done\rfailed\x07\x7f", "done\\x0dfailed\\x07\\x7f"),
        ("\x9b31m", "\\x9b31m"),
        ("abc\u202egpj.exe\u2066", "abc\\u202egpj.exe\\u2066"),
        ("\ud800\u2028\U000e0001", "\\ud800\\u2028\\U000e0001"),
    ],
)
def test_characters_that_command_a_terminal_are_written_as_escapes(text, shown):
    assert printable(text) == shown


def test_a_line_stays_one_line():
    assert printable("a\nb\tc", keep="") == "a\\x0ab\\x09c"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://127.0.0.1:8000/score", "http://127.0.0.1:8000/score"),
        ("https://h/p?token=s3cret&model=a", "https://h/p?token=***&model=***"),
        ("https://h/p?s3cret", "https://h/p?***"),
        ("https://h/p#access_token=s3cret", "https://h/p?access_token=***"),
        ("https://me:s3cret@h:1/p?key=s3cret", "https://***@h:1/p?key=***"),
        ("https://me:s3/c?r@et@h/p", "https://***@h/p"),
        ("me:s3cret@h/p", "***@h/p"),
    ],
)
def test_an_address_is_shown_without_its_secrets(address, shown):
    assert hide_secrets(address) == shown


def test_every_address_in_a_value_is_hidden_and_another_secret_is_told_by_its_digest():
    value = {"a": ["ask https://h/p?key=one now", 3, None], "b": "no address: key=one"}
    assert without_secrets(value) == {"a": ["ask https://h/p?key=*** now", 3, None], "b": "no address: key=one"}
    one, two = (without_secrets(f"https://h/p?key={key}", digest=True) for key in ("one", "two"))
    assert one == "https://h/p?key=*** 7692c3ad" and two == "https://h/p?key=*** 3fc4ccfe"  # of SHA-256
