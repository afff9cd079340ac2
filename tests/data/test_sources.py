"""Rows from every kind of source, each with where it stands."""

from __future__ import annotations

import json
import sys

import pytest

from rlhf_fast.data.readers import read_prompts
from rlhf_fast.data.sources import BadRow, raw_rows
from rlhf_fast.runtime.errors import UsageError


def write(path, text: str):
    path.write_text(text, encoding="utf-8")
    return path


def prompts(source, **options) -> list[str]:
    return [row.prompt for row in read_prompts(source, **options).rows]


def test_jsonl_counts_blank_lines_and_takes_a_byte_order_mark(tmp_path):
    path = write(tmp_path / "a.jsonl", '\ufeff{"prompt": "a"}\n\n{"prompt": "b"}\n')
    assert list(raw_rows(path)) == [(f"{path}:1", {"prompt": "a"}), (f"{path}:3", {"prompt": "b"})]


def test_csv_gives_the_line_on_which_a_row_begins_and_none_for_an_empty_cell(tmp_path):
    path = write(tmp_path / "a.csv", 'prompt,tag\n"two\nlines",x\nb,\n')
    assert list(raw_rows(path)) == [
        (f"{path}:2", {"prompt": "two\nlines", "tag": "x"}),
        (f"{path}:4", {"prompt": "b", "tag": None}),
    ]


def test_a_csv_row_with_more_cells_than_columns_is_a_bad_row(tmp_path):
    path = write(tmp_path / "a.csv", "prompt,tag\na,x\nb,y,z\n")
    with pytest.raises(UsageError, match=r"a\.csv:3: more cells than the 2 columns"):
        read_prompts(path)
    assert prompts(path, on_bad_row="skip") == ["a"]


def test_json_gives_the_number_of_the_row(tmp_path):
    path = write(tmp_path / "a.json", json.dumps([{"prompt": "a"}, 7]))
    (first, second) = raw_rows(path)
    assert first == (f"{path}, row 1", {"prompt": "a"})
    assert second[0] == f"{path}, row 2" and isinstance(second[1], BadRow)


def test_parquet_keeps_lists_numbers_and_nulls(tmp_path):
    pytest.importorskip("pyarrow", reason="Parquet is read with the package pyarrow, of the extra data")
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    rows = [{"prompt": "a", "ranks": [1.0, 2.5]}, {"prompt": None, "ranks": None}]
    write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [row for _, row in raw_rows(tmp_path / "a.parquet")] == rows


def test_a_folder_is_its_data_files_by_name_and_a_list_is_in_its_own_order(tmp_path):
    second, first = write(tmp_path / "b.jsonl", '{"prompt": "2"}'), write(tmp_path / "a.csv", "prompt\n1\n")
    write(tmp_path / "README.md", "not data")
    assert prompts(tmp_path) == prompts(str(tmp_path)) == ["1", "2"]
    assert prompts([second, str(first)]) == ["2", "1"]


def test_a_dataset_object_and_a_list_of_dicts_are_sources():
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": "a"}, {"prompt": "b"}]
    assert prompts(datasets.Dataset.from_list(rows)) == prompts(rows) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "repository", "split"),
    [("org/set-1.5", "org/set-1.5", "train"), ("org/set:test[:5]", "org/set", "test[:5]")],
)
def test_a_hub_name_is_loaded_with_its_split_and_no_remote_code(monkeypatch, name, repository, split):
    datasets = pytest.importorskip("datasets")
    calls = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: calls.append((a, k)) or [{"prompt": "a"}])
    assert prompts(name) == ["a"]
    assert calls == [((repository,), {"split": split})]


def test_a_hub_name_that_cannot_be_loaded_says_so(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def fail(*_, **__):
        raise FileNotFoundError("no such data set")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UsageError, match=r"'org/name' is no file here.*no such data set.*Check the name"):
        read_prompts("org/name")


@pytest.mark.parametrize("name", ["org/rows.jsonl", "/nowhere/rows", "./org/name", "../name", "rows", "a/b/c"])
def test_what_is_neither_a_file_nor_like_a_hub_name_is_refused(name):
    with pytest.raises(UsageError, match=r"no data at .* expected a \.jsonl"):
        read_prompts(name)


@pytest.mark.parametrize(("package", "source"), [("datasets", "org/name"), ("pyarrow", "a.parquet")])
def test_a_missing_extra_names_its_install_command(monkeypatch, tmp_path, package, source):
    write(tmp_path / "a.parquet", "")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=r"pip install rlhf-fast\[data\]"):
        read_prompts(str(tmp_path / source) if source.endswith("parquet") else source)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", b"[{", "no valid json file"),
        ("a.json", b'{"prompt": "a"}', "holds a JSON dict; expected a list"),
        ("a.json", b'["\xff"]', r"no valid json file in UTF-8.*Save it as UTF-8"),
        ("a.csv", b"prompt\n\xe9t\xe9\n", r"no valid csv file in UTF-8.*Save it as UTF-8"),
        ("a.csv", b'prompt\n"open', "csv:2: no valid csv file: .*a quote that is not closed"),
        ("a.parquet", b"not parquet", "no valid Parquet file"),
        ("a.txt", b"text", r"ends in '\.txt'; expected one of \.jsonl"),
    ],
)
def test_a_file_that_cannot_be_parsed_is_named(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(UsageError, match=rf"{name[:-3]}.*{reason}"):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize("source", [None, 3, {"train": [{"prompt": "a"}]}])
def test_an_object_that_holds_no_rows_is_refused(source):
    with pytest.raises(UsageError, match=rf"got a {type(source).__name__} as data"):
        read_prompts(source)


def test_a_folder_without_data_is_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no data file"):
        read_prompts(tmp_path)
