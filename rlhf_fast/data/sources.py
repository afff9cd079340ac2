"""Raw rows, each with where it stands, from files, `datasets.Dataset` objects, lists, or a hub name."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_fast.runtime.errors import UsageError

Raw = dict[str, Any]


class BadRow(Exception):
    """Why one row cannot be used."""


Located = tuple[str, Raw | BadRow]
"""Where a row stands (file and line), and the row or what is wrong with the line itself."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:.+)?")
_EXPECTED = "a .jsonl, .json, .csv or .parquet file, a folder or list of such files, or a hub name org/name[:split]"


def raw_rows(source: Any) -> Iterator[Located]:
    """Rows of files (by their ending), a folder or list of them, a `datasets.Dataset`, dicts, or "org/name[:split]".

    Raises `UsageError` for a source that is none of these, a file that cannot be parsed, or a missing extra package.
    """
    if isinstance(source, (str, Path)):
        return _named(str(source))
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise UsageError(f"got a {type(source).__name__} as data; expected {_EXPECTED}, one split, or a list of dicts.")
    if isinstance(source, (list, tuple)) and source and all(isinstance(part, (str, Path)) for part in source):
        return (row for part in source for row in _named(str(part)))
    return _numbered("row", source)


def describe(source: Any) -> str:
    """A short name of a source for messages."""
    return str(source) if isinstance(source, (str, Path)) else f"the given {type(source).__name__}"


def _named(name: str) -> Iterator[Located]:
    path = Path(name).expanduser()
    if path.is_file():
        return _file(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in _READERS)
        if not files:
            raise UsageError(f"the folder {name!r} holds no data file; expected {', '.join(_READERS)}.")
        return (row for file in files for row in _file(file))
    if path.suffix in _READERS or not _HUB_NAME.fullmatch(name) or name.startswith(("./", "../")):
        raise UsageError(f"no data at {name!r}; expected {_EXPECTED}. Check the path.")
    return _hub(name)


def _file(path: Path) -> Iterator[Located]:
    """Rows of one file; what its parser refuses as a whole is an error that names the file."""
    if path.suffix not in _READERS:
        raise UsageError(f"{path} ends in {path.suffix!r}; expected one of {', '.join(_READERS)}.")
    try:
        yield from _READERS[path.suffix](path)
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise UsageError(f"{path} is no valid {path.suffix[1:]} file in UTF-8: {error}. Mend the file.") from error


def _jsonl(path: Path) -> Iterator[Located]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", _object(line)


def _object(line: str) -> Raw | BadRow:
    try:
        return _mapping(json.loads(line))
    except json.JSONDecodeError as error:
        return BadRow(f"not valid JSON ({error}); expected one object a line")


def _json(path: Path) -> Iterator[Located]:
    values = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(values, list):
        raise UsageError(
            f"{path} holds a JSON {type(values).__name__}; expected a list of objects, or the file's ending .jsonl."
        )
    return _numbered(f"{path}, row", values)


def _csv(path: Path) -> Iterator[Located]:
    """An empty cell is None: CSV cannot tell an empty text from a missing one."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        line = 2
        for row in reader:
            too_long = BadRow(f"more cells than the {len(reader.fieldnames or ())} columns of the header")
            yield f"{path}:{line}", too_long if None in row else {name: row[name] or None for name in row}
            line = reader.line_num + 1


def _parquet(path: Path) -> Iterator[Located]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UsageError("reading Parquet files needs more packages; `pip install rlhf-fast[data]`.") from error
    try:
        with ParquetFile(path) as file:
            yield from _numbered(f"{path}, row", (row for batch in file.iter_batches() for row in batch.to_pylist()))
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path} is no valid Parquet file: {error}. Mend the file.") from error


_READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}


def _hub(name: str) -> Iterator[Located]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UsageError(
            f"{name!r} is no file here, and reading it as a hub data set needs more packages; "
            "check the path, or `pip install rlhf-fast[data]`."
        ) from error
    repository, _, split = name.partition(":")
    try:
        rows = load_dataset(repository, split=split or "train")
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{name!r} is no file here, and cannot be loaded from the hub: {error}. Check the name and split, "
            "or give a file."
        ) from error
    return _numbered(f"{name}, row", rows)


def _numbered(name: str, rows: Iterable[Any]) -> Iterator[Located]:
    return ((f"{name} {number}", _mapping(row)) for number, row in enumerate(rows, 1))


def _mapping(row: Any) -> Raw | BadRow:
    if isinstance(row, dict):
        return row
    return BadRow(f"got a {type(row).__name__}; expected a mapping of columns to values")
