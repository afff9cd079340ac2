"""From a YAML file and command-line overrides to a config dataclass."""

from __future__ import annotations

import argparse
import re
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from transformers import HfArgumentParser

from rlhf_fast.runtime.config import unknown_field
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.hints import value_hint

Config = TypeVar("Config")
_CHOICE = re.compile(r"argument --(\w+).*: invalid choice: '(.*?)'")  # as argparse says it


def parse_config(config_class: type[Config], arguments: list[str], *, prog: str) -> Config:
    """`--config file.yaml` first, `--field value` over it. Raises `UsageError` for unknown fields and bad values."""
    parser = config_parser(config_class, prog)
    untouched = vars(parser.parse_args([]))
    path, rest = _take_config(arguments)
    if path is not None:
        parser.set_defaults(**_read_yaml(path, config_class, parser))
    namespace, unknown = parser.parse_known_args(rest)
    if unknown:
        raise UsageError(_unknown(unknown[0].split("=")[0], config_class))
    return config_class(**{name: value for name, value in vars(namespace).items() if value != untouched[name]})


def config_parser(config_class: type, prog: str) -> argparse.ArgumentParser:
    """The parser of a config."""
    parser = HfArgumentParser(
        config_class,  # type: ignore[arg-type]
        prog=prog,
        allow_abbrev=False,
    )
    parser.error = partial(_refuse, parser.prog)  # type: ignore[method-assign]  # no page of usage before the reason
    parser.description = (config_class.__doc__ or "").split("\n")[0]
    parser.add_argument("--config", help="YAML file with values for the fields below; the command line wins.")
    return parser


def _take_config(arguments: list[str]) -> tuple[str | None, list[str]]:
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--config")
    try:
        known, rest = first.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UsageError(f"{error}: the path of a YAML file.") from error
    return known.config, rest


def _read_yaml(path: str, config_class: type, parser: argparse.ArgumentParser) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read the config file {path!r}: {error}.") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds {type(values).__name__}, expected a mapping of fields to values.")
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    for key in values:
        if key not in actions:
            raise UsageError(unknown_field(str(key), config_class, path))
    return {key: _from_yaml(value, actions[key], path) for key, value in values.items()}


def _from_yaml(value: Any, action: argparse.Action, path: str) -> Any:
    """A value as the command line would give it; nothing and mappings stay as they are."""
    if action.nargs in ("+", "*") and value is not None:
        return [_one(part, action, path) for part in (value if isinstance(value, list) else [value])]
    return _one(value, action, path)


def _one(value: Any, action: argparse.Action, path: str) -> Any:
    if value is None or isinstance(value, (list, dict)):
        return value
    try:
        return action.type(str(value)) if callable(action.type) else str(value)
    except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
        raise UsageError(f"{action.dest} is {value!r} in {path}; expected a value of its kind ({error}).") from error


def _refuse(prog: str, message: str) -> NoReturn:
    if (chosen := _CHOICE.search(message)) and (hint := value_hint(*chosen.groups())):
        message = f"{message}; {hint}"
    raise UsageError(f"{message}. `{prog} --help` lists the fields and what each takes.")


def _unknown(name: str, config_class: type) -> str:
    if not name.startswith("-"):
        how = "a field is given as --field value, a list as --field a b"
        return f"{name!r} on the command line belongs to no field; {how}."
    return unknown_field(name.lstrip("-"), config_class, "the command line")
