"""Checks that values fit type annotations, with the remedy where they do not."""

from __future__ import annotations

import ast
import collections.abc
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Between:
    """The numbers that a field takes, beside its type: `Annotated[int, Between(1, 10)]`.

    Attributes:
      low: the smallest of them.
      high: the largest of them.
    """

    low: float
    high: float


#: Widths, vocabularies and other sizes: every array index fits int32.
Size = Annotated[int, Between(1, 2**31 - 1)]
#: A token id, or a number of things that may be none.
Count = Annotated[int, Between(0, 2**31 - 1)]
#: Layers, codebooks and other parts that each have parameters of their own.
Parts = Annotated[int, Between(0, 4096)]
#: Frames of a delay.
Frames = Annotated[int, Between(0, 10_000)]
#: A delay.
Seconds = Annotated[float, Between(0, 800)]
#: Positions that attention sees: a day of frames.
Context = Annotated[int, Between(1, 2**20)]
#: A factor, such as that of a branch or of an update.
Factor = Annotated[float, Between(-1e6, 1e6)]
#: A factor or a period that must not be zero.
Positive = Annotated[float, Between(1e-6, 1e12)]


class Mismatch(Exception):
    """A value that does not fit its annotation; the message is the remedy."""


def checked(value: Any, hint: Any) -> Any:
    """Return `value` if it fits an annotation; an int where a float is expected becomes one.

    Raises:
      Mismatch: it does not; the message is the remedy.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        remedies = []
        for choice in sorted(arguments, key=lambda kind: kind is float):  # 3 stays an int where both fit
            try:
                return checked(value, choice)
            except Mismatch as error:
                remedies.append(str(error))
        raise Mismatch(max(remedies, key=len))
    if origin is typing.Literal:
        if value in arguments and any(type(value) is type(choice) for choice in arguments):
            return value
        raise Mismatch(f"{nearest(str(value), map(str, arguments))}choose one of them")
    if origin is tuple:
        if not isinstance(value, tuple):
            raise Mismatch("write a tuple in round brackets, (1, 2) or (1,)")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(checked(item, arguments[0]) for item in value)
        if len(arguments) != len(value):
            raise Mismatch(f"give {len(arguments)} values, not {len(value)}")
        return tuple(checked(item, kind) for item, kind in zip(value, arguments, strict=True))
    if origin in (dict, collections.abc.Mapping):
        if not isinstance(value, Mapping):
            raise Mismatch("write a dictionary in curly brackets")
        return {checked(key, arguments[0]): checked(item, arguments[1]) for key, item in value.items()}
    kind = origin or hint
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(kind, type) or (
        isinstance(value, kind) and (kind is bool or not isinstance(value, bool) or kind is object)
    ):
        return value
    if isinstance(value, str) and kind in (int, float, bool):
        raise Mismatch("write it without quotes" if _is_literal(value, kind) else f"give {name_of(kind)}")
    if kind is str:
        raise Mismatch("write it in quotes")
    raise Mismatch(f"give {name_of(kind)}, not {type(value).__name__}")


def _is_literal(text: str, kind: type) -> bool:
    try:
        return isinstance(ast.literal_eval(text), kind | int if kind is float else kind)
    except (ValueError, SyntaxError):
        return False


def name_of(hint: Any) -> str:
    """Return an annotation as a message names it."""
    if typing.get_origin(hint) is Annotated:
        kind, rule = typing.get_args(hint)
        return f"{'a whole number' if kind is int else 'a number'} from {rule.low:.12g} to {rule.high:.12g}"
    if isinstance(hint, type) and not typing.get_args(hint):
        return "None" if hint is type(None) else hint.__name__
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(name_of(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"tuple[{', '.join('...' if kind is Ellipsis else name_of(kind) for kind in typing.get_args(hint))}]"
    return str(hint).replace("typing.", "")


def shown(value: Any) -> str:
    """Return `value` as a message shows it: its beginning, if it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "did you mean ...? " with the known name that is most like `name`, or "" if none is."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? " if close else ""
