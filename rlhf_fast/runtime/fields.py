"""Which fields of a config have an effect, what is said of others, and whether their values are of the kinds that its
annotations name."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from transformers import TrainingArguments

from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.hints import field_hint, value_hint

C = TypeVar("C", bound="KnownFields")


class KnownFields:
    """Of a config: a keyword that is none of its fields raises `UsageError` with what serves it, before `__init__`
    would raise a TypeError. A subclass that takes keywords of its own goes by its own `__init__`."""

    def __new__(cls: type[C], *args: Any, **given: Any) -> C:
        taken = inspect.signature(cls.__init__).parameters
        if not any(one.kind is one.VAR_KEYWORD for one in taken.values()):
            for name in given:
                if name not in taken:
                    raise UsageError(unknown_field(name, cls, cls.__name__, f"help({cls.__name__}) lists the fields"))
        return super().__new__(cls)


def unknown_field(name: str, config_class: type, where: str, otherwise: str) -> str:
    """What to say of a field that a config does not have; otherwise: where nothing is known of it."""
    instead = getattr(config_class, "instead", {}).get(name)
    hint = f"use {instead}" if instead else field_hint(name, field_names(config_class)) or otherwise
    return f"unknown field {name!r} in {where}; {hint}{'' if hint.endswith('?') else '.'}"


def check_kinds(config: Any, names: Iterable[str]) -> None:
    """Raise `UsageError` for the first of the named fields whose value does not fit its annotation.

    Known kinds: bool, int, float (an int is one), str, classes, `list` of these, `Literal`, and unions.
    """
    hints = get_type_hints(type(config))
    for name in names:
        value = getattr(config, name)
        if not _fits(value, hints[name]):
            known = value_hint(name, value)
            hint = f" {known[0].upper()}{known[1:]}." if known else ""
            raise UsageError(f"{name}={value!r} cannot be used: expected {_words(hints[name])}.{hint}")


def field_names(config_class: type) -> list[str]:
    """Fields that a user can set to some effect."""
    served: frozenset[str] | None = getattr(config_class, "served", None)
    inherited = set() if served is None else {f.name for f in fields(TrainingArguments)}
    return [f.name for f in fields(config_class) if f.init and (f.name not in inherited or f.name in (served or ()))]


def _fits(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(kind))
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    if origin is list:
        return isinstance(value, list) and all(_fits(part, get_args(kind)[0]) for part in value)
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return isinstance(value, origin or kind)


def _words(kind: Any) -> str:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(part) for part in get_args(kind))
    if origin is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if origin is list:
        return f"a list, each {_words(get_args(kind)[0])}"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "nothing"}
    return names.get(kind, getattr(origin or kind, "__name__", str(kind)))
