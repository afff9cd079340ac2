"""Results as JSON files and back: nested dataclasses of numbers, texts, lists, dicts and None."""

from __future__ import annotations

import dataclasses
import json
import math
import types
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.files import write_text

T = TypeVar("T")


def write_record(path: str | Path, record: Any) -> None:
    """Write a dataclass or dict as JSON, the whole file or nothing; a number that JSON cannot hold (NaN, infinity)
    becomes null. Raises `OSError` if the disk refuses."""
    value = dataclasses.asdict(record) if dataclasses.is_dataclass(record) and not isinstance(record, type) else record
    write_text(Path(path), json.dumps(_finite(value), indent=2, ensure_ascii=False) + "\n")


def read_record(path: str | Path, kind: type[T], key: str | None = None) -> T:
    """The dataclass `kind` in the file (under `key`, if given). Raises `UsageError` for a file that holds none."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        return build_record(kind, value if key is None else value[key])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"cannot read {str(path)!r}: {type(error).__name__}: {error}. Expected a result written by this version; "
            "run the stage again."
        ) from error


def build_record(kind: Any, value: Any) -> Any:
    """`value`, as JSON or `dataclasses.asdict` gives it, as the type `kind`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        return None if value is None else build_record(inner[0], value) if len(inner) == 1 else value
    if origin is list:
        return [build_record(arguments[0], item) for item in value]
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{f.name: build_record(hints[f.name], value[f.name]) for f in dataclasses.fields(kind)})  # type: ignore[operator]
    if kind is float:
        return math.nan if value is None else float(value)
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
