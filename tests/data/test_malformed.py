"""Malformed files and rows: named with file, line and reason, skipped where that is asked, and never a traceback."""

from __future__ import annotations

import json

import pytest
from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.encode import encode_demonstration, encode_prompt
from rlhf_fast.data.fitting import TooLong, refuse_far_too_long
from rlhf_fast.data.readers import read_comparisons, read_demonstrations, read_prompts
from rlhf_fast.data.schema import Comparison, Demonstration
from rlhf_fast.preferences.comparisons import encode_comparison
from rlhf_fast.runtime.errors import UsageError
from tests.tiny_tokenizer import tiny_tokenizer

DEEP = "[" * 5000 + "]" * 5000


def prompts(path, **options):
    return [row.prompt for row in read_prompts(path, **options).rows]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (rb'{"prompt": "cut \ud83d"}', r"a text holds \\ud83d, half of a character"),
        (rb'{"prompt": [{"role": "user", "content": "\ude00 cut"}]}', r"a text holds \\ude00, half of a character"),
        (rb'{"prompt": "a", "not\ud800e": 1}', r"a text holds \\ud800, half of a character"),
        (b'{"prompt": "a", "n": ' + b"9" * 5000 + b"}", "not valid JSON .*digits"),
        (b'{"prompt": "a", "n": ' + DEEP.encode() + b"}", "not valid JSON .*recursion"),
        (b'{"prompt": "a", "n": ' + b"[" * 70 + b"]" * 70 + b"}", "more than 64 deep"),
        (b'{"prompt": "na\x00ive"}', "not valid JSON"),
        (rb'{"prompt": "na\u0000ive"}', "a NUL character"),
        ('{"prompt": "naïve"}'.encode("latin-1"), r"not valid UTF-8 \(.* at byte 15 of the line\)"),
        ('{"prompt": "naïve"}'.encode("utf-16"), "not valid UTF-8"),
        (b'{"prompt": "a", "prompt": "b"}', "the key 'prompt' stands twice"),
        (b'{"prompt": "a", "meta": {"id": 1, "id": 1}}', "the key 'id' stands twice"),
        (b'["prompt"]', "got a list; expected a mapping"),
        (b"17", "got a int; expected a mapping"),
    ],
)
def test_a_line_that_is_no_row_is_named_or_skipped_and_the_others_are_read(tmp_path, line, reason):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "first"}\n' + line + b'\n{"prompt": "last"}\n')
    with pytest.raises(UsageError, match=rf"a\.jsonl:2: .*{reason}.*on_bad_row=skip"):
        read_prompts(path)
    if b"\n" not in line:
        read = read_prompts(path, on_bad_row="skip")
        assert [row.prompt for row in read.rows] == ["first", "last"] and len(read.skipped) == 1


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"prompt": "a", "completion": "b", "label": 10**400}], None),
        ([{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 10**400]}], "a rank is .*expected a number"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c", "probability": 10**5000}], "probability is .*expected a num"),
        ([{1: "a", "prompt": "b"}], "columns are named 1, 'prompt'; expected text"),
        ([{"prompt": b"a"}], "prompt is b'a'; expected text"),
    ],
)
def test_rows_from_python_with_odd_values_are_rows_or_bad_rows(rows, reason):
    for reader in (read_demonstrations, read_comparisons, read_prompts):
        try:
            reader(rows)
        except UsageError as error:
            assert str(error).startswith("row 1: ")
    if reason is not None:
        with pytest.raises(UsageError, match=reason):
            (read_prompts if len(rows[0]) < 3 else read_comparisons)(rows)


def test_a_list_that_holds_itself_is_a_bad_row():
    loop: list = []
    loop.append(loop)
    with pytest.raises(UsageError, match=r"row 1: lists and objects inside one another more than 64 deep"):
        read_prompts([{"prompt": "a", "loop": loop}])


def test_a_json_file_with_a_bad_row_is_skipped_by_row_and_one_that_cannot_be_parsed_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"prompt": "a"}, {"prompt": "b", "prompt": "c"}, {"prompt": "\\ud83d"}]')
    read = read_prompts(path, on_bad_row="skip")
    assert [row.prompt for row in read.rows] == ["a"]
    assert [reason.partition(": ")[0] for reason in read.skipped] == [f"{path}, row 2", f"{path}, row 3"]
    for content in (DEEP, "[" + "9" * 5000 + "]", "", "[1,"):
        path.write_text(content)
        with pytest.raises(UsageError, match=r"a\.json is no valid json file: .*Mend the file"):
            read_prompts(path)
    path.write_text('{"a": 1, "a": 2}')
    with pytest.raises(UsageError, match="holds a JSON dict; expected a list"):
        read_prompts(path)


@pytest.mark.parametrize("size", [131_073, 3_000_000])
def test_a_csv_cell_may_be_as_long_as_a_book(tmp_path, size):
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion\n" + "x" * size + ",b\nc,d\n")
    assert [len(row.prompt) for row in read_demonstrations(path).rows] == [size, 1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"prompt,prompt\na,b\n", "has the column 'prompt' twice"),
        (b'prompt,id\na,1\n"b,2\nc,3\n', r"a\.csv:3: no valid csv file: .*quote that is not closed"),
        (b'prompt\n"a"b\n', r"a\.csv:2: no valid csv file"),
        ("prompt\nnaïve\n".encode("latin-1"), "no valid csv file in UTF-8"),
        ("prompt\na\n".encode("utf-16"), "no valid csv file in UTF-8"),
        ("prompt\na\n".encode("utf-16-le"), "columns are named|NUL|columns are"),
        (b"prompt\na\x00b\n", "NUL"),
        (b"", "no usable row"),
    ],
)
def test_a_csv_file_that_is_no_table_is_named(tmp_path, content, reason):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=reason):
        read_prompts(path)


def test_a_folder_with_the_name_of_a_file_is_a_folder(tmp_path):
    (tmp_path / "x.jsonl").mkdir()
    with pytest.raises(UsageError, match=r"the folder .*x\.jsonl' holds no data file"):
        read_prompts(tmp_path / "x.jsonl")
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}')
    assert prompts(tmp_path) == ["a"]  # x.jsonl is passed over
    (tmp_path / "x.jsonl" / "b.jsonl").write_text('{"prompt": "b"}')
    assert prompts(tmp_path / "x.jsonl") == ["b"]


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-that-name/a.jsonl", "a\x00b"])
def test_a_path_that_no_system_takes_is_an_error_in_words(name):
    with pytest.raises(UsageError, match=r"cannot read|no data at"):
        read_prompts(name)


class Counting:
    """A tokenizer that knows how many characters it was given."""

    def __init__(self, tokenizer):
        self.tokenizer, self.read = tokenizer, 0

    def __call__(self, text, **options):
        self.read += len(text)
        return self.tokenizer(text, **options)


def test_a_text_far_over_the_limit_is_refused_before_it_is_tokenised():
    tokenizer = Counting(tiny_tokenizer())
    with pytest.raises(
        TooLong, match=r"30000000 characters is far over the 10 tokens that fit: its first 640 have 214"
    ):
        refuse_far_too_long(tokenizer, ["w1 " * 10_000_000], 10)
    assert tokenizer.read == 640


@pytest.mark.parametrize(
    "text",
    ["w1" + " " * 5000 + "w2", "x" * 100_000 + " w1", "w1 " * 10, " " * 9000],
    ids=["gap", "word", "10", "blank"],
)
def test_no_text_that_fits_is_refused_however_many_characters_it_has(text):
    refuse_far_too_long(tiny_tokenizer(), [text], 10)
    assert len(tiny_tokenizer()(text)["input_ids"]) <= 10


def test_a_long_text_may_need_more_than_the_first_characters_to_be_known_as_long():
    tokenizer = Counting(tiny_tokenizer())
    with pytest.raises(TooLong, match="its first 1280 have 2"):
        refuse_far_too_long(tokenizer, [" " * 600 + "w1 " * 1000], 10)
    assert tokenizer.read == 640 + 1280


LONG = "w1 " * 2_000_000


def test_every_stage_refuses_it_where_its_rows_are_encoded(monkeypatch):
    tokenizer, read, call = tiny_tokenizer(), [], PreTrainedTokenizerBase.__call__

    def counted(self, text, *arguments, **options):
        read.append(len(text))
        return call(self, text, *arguments, **options)

    monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", counted)
    chat = [{"role": "user", "content": LONG}, {"role": "assistant", "content": "w2"}]
    for row in (Demonstration(LONG, "w2"), Demonstration("w2", LONG), Demonstration(messages=chat)):
        with pytest.raises(UsageError, match="far over the 20 tokens"):
            encode_demonstration(tokenizer, row, max_length=20)
    for prompt in (LONG, chat[:1]):
        with pytest.raises(UsageError, match="far over the 20 tokens"):
            encode_prompt(tokenizer, prompt, max_length=20)
    with pytest.raises(UsageError, match="far over the 20 tokens"):
        encode_comparison(tokenizer, Comparison("w1", ("w2", LONG), (1, 2)), max_length=20)
    assert read and max(read) <= 2 * 64 * 20


def test_json_of_a_row_is_as_long_as_it_likes(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "a", "text": LONG}))
    assert prompts(path) == ["a"]
