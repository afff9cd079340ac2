"""From a YAML file and command-line overrides to a config dataclass."""

from __future__ import annotations

import argparse
import difflib
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

import yaml
from transformers import HfArgumentParser, TrainingArguments

from rlhf_fast.runtime.config import StageConfig
from rlhf_fast.runtime.errors import UsageError

Config = TypeVar("Config")


def parse_config(config_class: type[Config], arguments: list[str], *, prog: str) -> Config:
    """`--config file.yaml` first, `--field value` over it. Raises `UsageError` for unknown fields and bad values."""
    parser = config_parser(config_class, prog)
    untouched = vars(parser.parse_args([]))
    path, rest = _take_config(arguments)
    if path is not None:
        parser.set_defaults(**_read_yaml(path, config_class))
    namespace, unknown = parser.parse_known_args(rest)
    if unknown:
        raise UsageError(_unknown(unknown[0].removeprefix("--").split("=")[0], config_class, "the command line"))
    return config_class(**{name: value for name, value in vars(namespace).items() if value != untouched[name]})


def config_parser(config_class: type, prog: str) -> argparse.ArgumentParser:
    """The parser of a config; its help shows only fields that do something."""
    parser = HfArgumentParser(
        config_class,  # type: ignore[arg-type]
        prog=prog,
        allow_abbrev=False,
    )
    parser.description = (config_class.__doc__ or "").split("\n")[0]
    parser.add_argument("--config", help="YAML file with values for the fields below; the command line wins.")
    shown = set(_field_names(config_class))
    for action in parser._actions:
        if action.dest not in shown and action.dest not in ("help", "config"):
            action.help = argparse.SUPPRESS
    return parser


def _take_config(arguments: list[str]) -> tuple[str | None, list[str]]:
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    known, rest = first.parse_known_args(arguments)
    return known.config, rest


def _read_yaml(path: str, config_class: type) -> dict:
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read the config file {path!r}: {error}.") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds {type(values).__name__}, expected a mapping of fields to values.")
    known = {f.name for f in fields(config_class)}
    for key in values:
        if key not in known:
            raise UsageError(_unknown(key, config_class, path))
    return {key: str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
            for key, value in values.items()}  # fmt: skip


def _unknown(name: str, config_class: type, where: str) -> str:
    close = difflib.get_close_matches(name, _field_names(config_class), n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "--help lists the fields."
    return f"unknown field {name!r} in {where}; {hint}"


def _field_names(config_class: type) -> list[str]:
    """Fields that a user can set to some effect."""
    inherited = {f.name for f in fields(TrainingArguments)} if issubclass(config_class, StageConfig) else set()
    served: frozenset[str] = getattr(config_class, "served", frozenset())
    return [f.name for f in fields(config_class) if f.init and (f.name not in inherited or f.name in served)]
