"""Whatever stands in a file or a row: rows, bad rows or a `UsageError`, and never another exception."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_fast.data import columns
from rlhf_fast.data.readers import read_comparisons, read_demonstrations, read_prompts
from rlhf_fast.data.sources import BadRow
from rlhf_fast.data.turns import READ, REFUSED, SHAREGPT
from rlhf_fast.runtime.errors import UsageError

READERS = (read_demonstrations, read_comparisons, read_prompts)
GOOD = {
    "jsonl": b'{"prompt": "a", "completion": "b"}\n{"chosen": "a b", "rejected": "a c"}\n',
    "json": b'[{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]',
    "csv": b'prompt,completion\n"a, b",c\nd,e\n',
}
COLUMNS = sorted(
    {name for shapes in columns._SHAPES.values() for shape in shapes for name in shape}
    | {name for refusal in columns.REFUSALS for name in refusal.columns}
    | {*columns.CONTEXT, *columns.QUESTION, "context", "votes", "probability", "other"}
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just(10**400), st.just("\ud83d"),
    st.sampled_from(["user", "assistant", "tool", "[]", "a b c", *SHAREGPT]),
)  # fmt: skip
TURNS = st.dictionaries(st.sampled_from(sorted({*READ, *REFUSED, "else"})), LEAVES, max_size=5)
VALUES = st.recursive(
    LEAVES | TURNS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=2),
    max_leaves=8,
)
FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def read_all(path: Path) -> None:
    for reader in READERS:
        for on_bad_row in ("raise", "skip"):
            try:
                reader(path, on_bad_row=on_bad_row)
            except UsageError as error:
                assert str(error)


@FEW
@given(st.sampled_from(sorted(GOOD)), st.data())
def test_any_bytes_in_a_file_give_rows_or_an_error_in_words(kind, data):
    good = GOOD[kind]
    cut, other = data.draw(st.integers(0, len(good))), data.draw(st.integers(0, len(good)))
    content = good[:cut] + data.draw(st.binary(max_size=12)) + good[other:]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows.{kind}"
        path.write_bytes(content)
        read_all(path)


@settings(FEW, max_examples=60)
@given(st.data())
def test_any_bytes_in_a_parquet_file_give_rows_or_an_error_in_words(data):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        write_table(pyarrow.Table.from_pylist([{"prompt": "a", "completion": "b"}]), path)
        good = path.read_bytes()
        at = data.draw(st.integers(0, len(good) - 1))
        path.write_bytes(good[:at] + data.draw(st.binary(min_size=1, max_size=2)) + good[at + 1 :])
        read_all(path)


@settings(FEW, max_examples=400)
@given(st.lists(st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=6), min_size=1, max_size=3))
def test_any_values_in_the_columns_we_know_are_a_row_or_a_bad_row(rows):
    for kind, convert in zip(
        ("demonstrations", "comparisons", "prompts"),
        (columns.demonstration, columns.comparison, columns.prompt_row),
        strict=True,
    ):
        for row in rows:
            try:
                convert(row)
                columns.unread(row, kind)
            except BadRow as error:
                assert str(error)
    for reader in READERS:
        try:
            read = reader(rows, on_bad_row="skip")
            assert len(read.rows) + len(read.skipped) == len(rows)
            json.dumps([vars(row).get("prompt") for row in read.rows])
        except UsageError as error:
            assert str(error)
