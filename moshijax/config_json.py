"""Frozen config dataclasses as plain JSON values, and back; no code is executed and nothing is guessed."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import types
import typing
from fractions import Fraction
from typing import Annotated, Any

from moshijax.annotations import name_of, nearest, shown
from moshijax.errors import ConfigError


def to_json(value: Any) -> Any:
    """Return the JSON value of a config.

    Dataclasses become objects, with their class name under "type", and tuples become lists.

    Raises:
      TypeError: a value that is no part of a config.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, Fraction):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} of type {type(value).__name__} is not a config value")


def from_json(cls: Any, value: Any, where: str = "") -> Any:
    """Return the config that `to_json` wrote as `value`.

    Args:
      cls: class or type hint of the config.
      value: the JSON value.
      where: names the place in messages.

    Raises:
      ConfigError: an unknown or missing field, or a value that is not of the field's type or outside its range
        (`Annotated[int, Between(1, 10)]`).
    """
    if dataclasses.is_dataclass(cls):
        return _dataclass_from_json(cls, value, where)
    origin, arguments = typing.get_origin(cls), typing.get_args(cls)
    if origin in (typing.Union, types.UnionType):
        return _union_from_json(arguments, value, where)
    if origin is Annotated:
        kind, rule = arguments
        if _is_number(value, kind) and rule.low <= value <= rule.high:
            return kind(value)
    elif origin is typing.Literal:
        if any(type(value) is type(choice) and value == choice for choice in arguments):
            return value
    elif origin is tuple and isinstance(value, list):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(from_json(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(arguments) == len(value):
            pairs = zip(arguments, value, strict=True)
            return tuple(from_json(hint, item, f"{where}[{i}]") for i, (hint, item) in enumerate(pairs))
    elif origin is dict and isinstance(value, dict):
        return {from_json(arguments[0], k): from_json(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    elif cls is Any or (cls is type(None) and value is None):
        return value
    elif cls in (int, float):
        if _is_number(value, cls):
            return cls(value)
    elif cls is Fraction and isinstance(value, str | int):
        with contextlib.suppress(ValueError, ZeroDivisionError):
            return Fraction(value)
    elif isinstance(cls, type) and isinstance(value, cls):
        return value
    raise ConfigError(f"{where or 'config'} is {shown(value)}: must be {name_of(cls)}")


def _is_number(value: Any, kind: type) -> bool:
    """Whether a value is a finite number of a kind, int or float; a whole number is of both, a boolean of neither."""
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _dataclass_from_json(cls: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ConfigError(f"{where or 'config'} is {shown(value)}: must be an object with the fields of {cls.__name__}")
    found = {key: item for key, item in value.items() if key != "type"}
    hints = typing.get_type_hints(cls, include_extras=True)
    known = [f.name for f in dataclasses.fields(cls) if f.init]
    for key in found:
        if key not in known:
            near = nearest(key, known)
            raise ConfigError(f"{cls.__name__} has no field {key!r} (in {where or 'config'}); {near}check the name")
    kwargs = {key: from_json(hints[key], item, f"{where}.{key}" if where else key) for key, item in found.items()}
    try:
        return cls(**kwargs)
    except TypeError as error:
        raise ConfigError(f"{where or 'config'}: {error}") from None


def _union_from_json(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if isinstance(value, dict) and "type" in value:
        named = [c for c in choices if dataclasses.is_dataclass(c) and c.__name__ == value["type"]]
        if named:
            return from_json(named[0], value, where)
    failures = []
    for choice in choices:
        try:
            return from_json(choice, value, where)
        except ConfigError as error:
            failures.append(error)
    if len(choices) == 2 and type(None) in choices:  # an optional value: report what is wrong with it
        raise failures[0] if choices[1] is type(None) else failures[1]
    raise ConfigError(f"{where or 'config'} is {shown(value)}: must be {' or '.join(name_of(c) for c in choices)}")


def differences(old: Any, new: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """Return every leaf in which two JSON values differ, as (path, old, new); a missing side is None."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        parts = [differences(old.get(k), new.get(k), f"{where}.{k}" if where else k) for k in keys]
        return [item for part in parts for item in part]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        parts = [differences(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(old, new, strict=True))]
        return [item for part in parts for item in part]
    return [] if old == new else [(where, old, new)]
