"""Whether what was read from a file is what a program expects there, by declared types."""

from __future__ import annotations

import dataclasses
import re
import reprlib
import sys
import types
import typing
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import cache
from math import inf, isfinite
from typing import Any

MOST = sys.float_info.max

Check = Callable[[Any], None]
"""Raises Misfit for what is not of a kind."""


@dataclasses.dataclass(frozen=True)
class Within:
    """Bounds of a number, both included: ``Annotated[int, Within(0, 255)]``."""

    low: float
    high: float


class Misfit(ValueError):
    """A value of another type than declared; the message names its place: ``images[3].id ...``.

    Attributes:
        place: where it is, "" if it is the whole.
        told: what is wrong, without the place: "must be ...".
    """

    def __init__(self, told: str) -> None:
        super().__init__(told)
        self.place, self.told = "", told

    @classmethod
    def of(cls, wanted: str, value: Any) -> Misfit:
        return cls(f"must be {wanted}, not {shown(value)}")

    def below(self, key: Any) -> Misfit:
        """The same, seen from what holds the value under a key, or at an index."""
        self.place = (f".{key}" if isinstance(key, str) else f"[{shown(key)}]") + self.place
        return self

    def __str__(self) -> str:
        return f"{self.place.removeprefix('.') or 'its content'} {self.told}"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlong = 60
_SHORT.maxlevel = 2


def shown(value: Any) -> str:
    """A value as Python writes it, on one line and cut short: it may be of any size and depth."""
    try:
        return "null" if value is None else _SHORT.repr(value)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        return "a number of thousands of digits"


def check(kind: Any, value: Any) -> None:
    """Hold a value against a declared type, down to its last part; nothing is converted.

    Args:
        kind: bool, int, float (whole numbers pass, too), str, None, Any, list[T], tuple[T, ...]
            and tuple[A, B] (lists pass, too), dict[K, V], unions of these that Python's types
            tell apart, ``Annotated`` numbers with :class:`Within`, TypedDict or a dataclass as a
            dictionary (keys that it does not declare pass), or any other class.

    Raises:
        Misfit: naming the first place that does not fit. Numbers must be finite, and text must
            be what UTF-8 can hold, without NUL.
    """
    _checker(kind)(value)


@cache
def _checker(kind: Any) -> Check:
    accepted, wanted, inside = _parts(kind)

    def checked(value: Any) -> None:
        if accepted is not None and type(value) not in accepted:
            raise Misfit.of(wanted, value)
        if inside is not None:
            inside(value)

    return checked


def _parts(kind: Any) -> tuple[tuple[type, ...] | None, str, Check | None]:
    """The exact types of a kind's values (None: any), what they are called, and a check of them."""
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if kind is Any:
        return None, "anything", None
    if kind is None or kind is type(None):
        return (type(None),), "null", None
    if kind is str:
        return (str,), "of type str", _text
    if origin in (int, float, typing.Annotated):
        return _number(*inner or (kind,))
    if origin in (typing.Union, types.UnionType):
        return _union(inner)
    if origin is tuple and inner[-1] is not Ellipsis:
        return (list, tuple), f"a list of {len(inner)}", _row(inner)
    if origin in (list, tuple):
        return (list,) if origin is list else (list, tuple), "a list", _list(inner[0])
    if origin is dict:
        return (dict, OrderedDict), "a mapping", _mapping(*inner) if inner else None
    if typing.is_typeddict(kind) or dataclasses.is_dataclass(kind):
        return (dict, OrderedDict), "a mapping", _record(kind)
    return (kind,), f"of type {kind.__name__}", None


_NO_TEXT = re.compile("[\\0\ud800-\udfff]")


def _text(value: str) -> None:
    if _NO_TEXT.search(value):
        raise Misfit.of("text without NUL that UTF-8 can hold", value)


def _number(base: type, bounds: Within | None = None) -> tuple[tuple[type, ...], str, Check]:
    wanted, edge = f"of type {base.__name__}", inf if base is int else MOST
    low, high, outside = -edge, edge, "a finite number"
    if bounds is not None:
        low, high = bounds.low, bounds.high
        wanted = outside = f"{wanted}, {low:g} to {high:g}"

    def inside(value: Any) -> None:
        if not low <= value <= high:
            raise Misfit.of(outside, value)

    return (int,) if base is int else (int, float), wanted, inside


def _union(kinds: tuple) -> tuple[tuple[type, ...], str, Check]:
    parts = {kind: _parts(kind) for kind in kinds}
    by_type = {accepted: _checker(kind) for kind in reversed(kinds) for accepted in parts[kind][0]}
    wanted = " or ".join(name for _, name, _ in parts.values())
    return tuple(by_type), wanted, lambda value: by_type[type(value)](value)


def _each(parts: Callable[[Any], Iterable[tuple[Any, Check, Any]]]) -> Check:
    """A check of all that a value holds: ``parts`` gives keys, checks and what is to be checked."""

    def inside(values: Any) -> None:
        for key, one, value in parts(values):
            try:
                one(value)
            except Misfit as error:
                raise error.below(key) from None

    return inside


def _list(kind: Any) -> Check:
    one = _checker(kind)
    inside = _each(lambda values: ((index, one, value) for index, value in enumerate(values)))
    if kind not in (int, float) and typing.get_origin(kind) is not typing.Annotated:
        return inside
    accepted = frozenset(_parts(kind)[0])

    def numbers(values: Any) -> None:
        # At the speed of C: annotation files hold tens of millions. Only a sum tells of NaN.
        try:
            fine = accepted.issuperset(map(type, values)) and isfinite(sum(values))
            one(min(values))
            one(max(values))
        except (ValueError, TypeError, OverflowError):  # a misfit, or there are none
            fine = False
        if not fine:
            inside(values)

    return numbers


def _row(kinds: tuple) -> Check:
    checks = [_checker(kind) for kind in kinds]

    def parts(values: Any) -> Iterable[tuple[Any, Check, Any]]:
        if len(values) != len(checks):
            raise Misfit.of(f"a list of {len(checks)}", values)
        return zip(range(len(checks)), checks, values, strict=True)

    return _each(parts)


def _mapping(key_kind: Any, kind: Any) -> Check:
    of_key, one = _checker(key_kind), _checker(kind)
    keys = _each(lambda values: ((key, of_key, key) for key in values))
    inside = _each(lambda values: ((key, one, value) for key, value in values.items()))
    return lambda values: (keys(values), inside(values))


def _record(kind: Any) -> Check:
    hints = typing.get_type_hints(kind, include_extras=True)
    checks = {key: _checker(hint) for key, hint in hints.items()}
    if dataclasses.is_dataclass(kind):
        required = frozenset(
            field.name for field in dataclasses.fields(kind)
            if field.default is field.default_factory is dataclasses.MISSING
        )
    else:
        required = kind.__required_keys__

    def parts(values: Any) -> Iterable[tuple[Any, Check, Any]]:
        if not required <= values.keys():
            missing = required - values.keys()
            raise Misfit("is missing").below(next(key for key in checks if key in missing))
        return ((key, one, values[key]) for key, one in checks.items() if key in values)

    return _each(parts)
