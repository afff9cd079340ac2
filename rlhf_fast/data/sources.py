"""Raw rows, each with where it stands, from files, `datasets.Dataset` objects, lists, or a hub name.

What is wrong with one row (bad JSON, half a character, a key that stands twice) is a `BadRow` at its place; what is
wrong with a whole file is a `UsageError` that names it.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_fast.runtime.errors import UsageError

Raw = dict[str, Any]


class BadRow(Exception):
    """Why one row cannot be used."""


Located = tuple[str, Raw | BadRow]
"""Where a row stands (file and line), and the row or what is wrong with the line itself."""

MAX_DEPTH = 64
"""Lists and dicts inside one another. Rows of people have under ten; Python's parsers and printers fail at 1,000."""
_ARROW_NESTED = ("messages", "conversations", "prompt", "completion", "chosen", "rejected", "tools")
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
    of_arrow = type(source).__module__.partition(".")[0] == "datasets"
    return _numbered("row", map(_without_nulls, source) if of_arrow else source)


def describe(source: Any) -> str:
    """A short name of a source for messages."""
    return str(source) if isinstance(source, (str, Path)) else f"the given {type(source).__name__}"


def _named(name: str) -> Iterator[Located]:
    try:
        path = Path(name).expanduser()
        if path.is_file():
            return _file(path)
        files = sorted(file for file in path.iterdir() if _is_data(file)) if path.is_dir() else None
    except (OSError, RuntimeError) as error:  # no permission, too long a name, no such home
        raise UsageError(f"cannot read {name!r}: {error}. Check the path.") from error
    if files is not None:
        if not files:
            raise UsageError(f"the folder {name!r} holds no data file; expected {', '.join(_READERS)}.")
        return (row for file in files for row in _file(file))
    if path.suffix in _READERS or not _HUB_NAME.fullmatch(name) or name.startswith(("./", "../")):
        raise UsageError(f"no data at {name!r}; expected {_EXPECTED}. Check the path.")
    return _hub(name)


def _is_data(path: Path) -> bool:
    return path.suffix in _READERS and path.is_file()


def _file(path: Path) -> Iterator[Located]:
    """Rows of one file; what its parser refuses as a whole is an error that names the file."""
    if path.suffix not in _READERS:
        raise UsageError(f"{path} ends in {path.suffix!r}; expected one of {', '.join(_READERS)}.")
    try:
        yield from _READERS[path.suffix](path)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no valid {path.suffix[1:]} file in UTF-8: {error}. Save it as UTF-8.") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error}. Check the file and who may read it.") from error


def _jsonl(path: Path) -> Iterator[Located]:
    """Lines are decoded one by one, so that one in another encoding is one bad row."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip(b"\xef\xbb\xbf \t\r\n"):
                yield f"{path}:{number}", _line(line)


def _line(line: bytes) -> Raw | BadRow:
    try:
        return _mapping(_parse(line.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        return BadRow(f"not valid UTF-8 ({error.reason} at byte {error.start + 1} of the line). Save it as UTF-8")
    except (ValueError, RecursionError) as error:
        return BadRow(f"not valid JSON ({error}); expected one object a line")


def _json(path: Path) -> Iterator[Located]:
    try:
        values = _parse(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no valid json file: {error}. Mend the file.") from error
    if not isinstance(values, list):
        what = type(values).__name__ if not isinstance(values, BadRow) else "dict"
        raise UsageError(f"{path} holds a JSON {what}; expected a list of objects, or the file's ending .jsonl.")
    return _numbered(f"{path}, row", values)


def _parse(text: str) -> Any:
    """Python would keep the last of two equal keys and say nothing: such an object is a `BadRow` in its place.

    Raises `ValueError` for what is no JSON or holds an integer of thousands of digits, `RecursionError` for JSON that
    is nested a thousand deep.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> Raw | BadRow:
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    names = [name for name, _ in pairs]
    return BadRow(f"the key {next(n for n in names if names.count(n) > 1)!r} stands twice in one object; remove one")


def _csv(path: Path) -> Iterator[Located]:
    """An empty cell is None: CSV cannot tell an empty text from a missing one."""
    csv.field_size_limit(max(csv.field_size_limit(), min(sys.maxsize, 2**31 - 1)))  # a cell may be a whole book
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader, line = csv.DictReader(file, strict=True), 1
        try:
            _check_header(path, list(reader.fieldnames or ()))
            line = 2
            for row in reader:
                too_long = BadRow(f"more cells than the {len(reader.fieldnames or ())} columns of the header")
                yield f"{path}:{line}", too_long if None in row else _mapping({name: row[name] or None for name in row})
                line = reader.line_num + 1
        except csv.Error as error:
            raise UsageError(
                f"{path}:{line}: no valid csv file: {error}. Look for a quote that is not closed."
            ) from error


def _check_header(path: Path, names: list[str]) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(f"{path} has the column {twice[0]!r} twice; expected each once. Rename or remove one.")


def _parquet(path: Path) -> Iterator[Located]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError("reading Parquet files needs more packages; `pip install rlhf-fast[data]`.") from error
    try:
        with parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            yield from _numbered(f"{path}, row", map(_without_nulls, rows))
    except Exception as error:  # what Arrow raises for a broken file is of many kinds
        raise UsageError(f"{path} is no valid Parquet file: {type(error).__name__}: {error}. Mend the file.") from error


def _without_nulls(row: Any) -> Any:
    """Arrow fills every key that any row has with null, so in turns and tools a null says that there is no such key."""
    if not isinstance(row, dict):
        return row
    return {name: _dropped(value) if name in _ARROW_NESTED else value for name, value in row.items()}


def _dropped(value: Any) -> Any:
    if isinstance(value, list):
        return [_dropped(part) for part in value]
    if isinstance(value, dict):
        return {key: _dropped(part) for key, part in value.items() if part is not None}
    return value


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
    return _numbered(f"{name}, row", map(_without_nulls, rows))


def _numbered(name: str, rows: Iterable[Any]) -> Iterator[Located]:
    return ((f"{name} {number}", _mapping(row)) for number, row in enumerate(rows, 1))


def _mapping(row: Any) -> Raw | BadRow:
    if isinstance(row, BadRow):
        return row
    if not isinstance(row, dict):
        return BadRow(f"got a {type(row).__name__}; expected a mapping of columns to values")
    return _fault(row) or row


def _fault(row: Raw) -> BadRow | None:
    """What is wrong somewhere inside a row: half a character, a NUL, a key twice, too deep; None if nothing is."""
    if not all(isinstance(name, str) for name in row):
        return BadRow(f"columns are named {', '.join(map(repr, row))[:80]}; expected text")
    level: list[Any] = [row]
    for _ in range(MAX_DEPTH):
        if not level:
            return None
        inside: list[Any] = []
        for value in level:
            fault = _bad_text(value) if isinstance(value, str) else value if isinstance(value, BadRow) else None
            if fault is not None:
                return fault
            if isinstance(value, dict):
                inside += [*value, *value.values()]
            elif isinstance(value, (list, tuple)):
                inside += value
        level = inside
    return BadRow(f"lists and objects inside one another more than {MAX_DEPTH} deep; expected a plain row")


def _bad_text(text: str) -> BadRow | None:
    if "\x00" in text:
        return BadRow("a text holds a NUL character, as damaged files and other encodings have; remove it")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(text[error.start]):04x}"
            return BadRow(
                f"a text holds {half}, half of a character, which no UTF-8 text can have. It was cut in the middle of "
                "an emoji or the like; remove the half"
            )
    return None
