"""Settings of a recipe: frozen dataclasses that `--set key=value` changes and that run folders keep as JSON.

    changed(NanoConfig(), ["batch_size=8", "shapes=(8,112),(4,224)", "model.depth=4"])

A value is read by the type of its field: numbers, true/false, text, `none` where the field allows it, tuples with or
without brackets. Nothing is evaluated but literals.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from elastivid.core.errors import ElastividError, UnknownNameError

Config = TypeVar("Config")


class SettingError(ElastividError, ValueError):
    """A setting has a value that its field cannot take."""


def changed(config: Config, assignments: Iterable[str]) -> Config:
    """`config` with settings replaced, all at once: settings that need each other may come in any order.

    Args:
        config: a frozen dataclass; fields may be dataclasses, whose fields are reached with dots.
        assignments: `key=value` each; later ones win.

    Raises:
        SettingError: an assignment has no `=`, a value does not fit its field, or the config refuses them together.
        UnknownNameError: there is no such field; the message lists the closest ones.
    """
    wanted: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise SettingError(f"a setting is key=value, got {assignment!r}")
        _note(wanted, config, key.strip(), text.strip())
    return _replaced(config, wanted)


def _note(wanted: dict[str, Any], config: Any, key: str, text: str) -> None:
    """Put the value of `key` into `wanted`, a dict for every dataclass on the way."""
    *path, last = key.split(".")
    for name in path:
        if name not in _fields(config):
            raise UnknownNameError(f"setting of {type(config).__name__}", name, keys(config))
        config = getattr(config, name)
        if not dataclasses.is_dataclass(config):
            raise SettingError(f"{key}: {name} has no fields of its own, it is {config!r}")
        wanted = wanted.setdefault(name, {})
    if last not in _fields(config):
        raise UnknownNameError(f"setting of {type(config).__name__}", last, keys(config))
    current = getattr(config, last)
    if dataclasses.is_dataclass(current):
        raise SettingError(f"{key} holds settings of its own; set one of {', '.join(keys(current, f'{key}.'))}")
    wanted[last] = fitted(_literal(text), typing.get_type_hints(type(config))[last], key)


def _fields(config: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]


def _replaced(config: Any, wanted: dict[str, Any]) -> Any:
    values = {
        name: _replaced(getattr(config, name), value) if dataclasses.is_dataclass(getattr(config, name)) else value
        for name, value in wanted.items()
    }
    try:
        return dataclasses.replace(config, **values)
    except ValueError as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(str(error)) from error


def keys(config: Any, prefix: str = "") -> list[str]:
    """Every setting of `config` by its dotted name."""
    found: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = prefix + field.name
        found += keys(value, f"{name}.") if dataclasses.is_dataclass(value) else [name]
    return found


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def fitted(value: Any, kind: Any, key: str) -> Any:
    """`value`, a literal or what JSON holds, as a value of type `kind`.

    Raises:
        SettingError: it is none; the message says what the field takes.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _fitted_to_any(value, arguments, key)
    if origin is tuple:
        items = value if isinstance(value, tuple | list) else (value,)
        if arguments[-1:] == (Ellipsis,):
            if items and typing.get_origin(arguments[0]) is tuple and not isinstance(items[0], tuple | list):
                items = (items,)  # (8, 112) where pairs are wanted is one pair
            return tuple(fitted(item, arguments[0], key) for item in items)
        if len(items) != len(arguments):
            raise SettingError(f"{key} takes {len(arguments)} values, got {value!r}")
        return tuple(fitted(item, part, key) for item, part in zip(items, arguments, strict=True))
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        assert isinstance(kind, type)
        return from_values(kind, value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, int | float):
        return str(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is Any or (
        isinstance(kind, type) and isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
    ):
        return value
    raise SettingError(f"{key} takes {_named(kind)}, got {value!r}")


def _fitted_to_any(value: Any, kinds: Sequence[Any], key: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    for kind in kinds:
        if kind is type(None):
            continue
        try:
            return fitted(value, kind, key)
        except SettingError:
            continue
    raise SettingError(f"{key} takes {' or '.join(_named(kind) for kind in kinds)}, got {value!r}")


def _named(kind: Any) -> str:
    if kind is type(None):
        return "none"
    named = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    return named.get(kind) or str(kind)


def to_values(config: Any) -> dict[str, Any]:
    """A config as JSON values; `from_values` undoes it."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return values


def from_values(kind: type[Config], values: dict[str, Any]) -> Config:
    """The config of type `kind` that `to_values` turned into `values`.

    Raises:
        SettingError: a key is unknown or a value does not fit.
    """
    kinds = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(kinds))
    if unknown:
        raise SettingError(f"{kind.__name__} has no settings {', '.join(unknown)}; it has {', '.join(sorted(kinds))}")
    return kind(**{name: fitted(value, kinds[name], name) for name, value in values.items()})


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """A line for every setting that differs between two configs as values: `name: before -> now`."""
    lines: list[str] = []
    for name in sorted(set(before) | set(now)):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            lines.append(f"{prefix}{name}: {old!r} -> {new!r}")
    return lines


def fingerprint(name: str, values: dict[str, Any]) -> str:
    """First 16 hexadecimal digits of the hash of a recipe's name and its settings."""
    text = json.dumps([name, values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
