"""Whether what was read from a file is what a program expects there, by declared types."""

from __future__ import annotations

import dataclasses
import reprlib
import sys
import types
import typing
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from math import inf
from typing import Any

MOST = sys.float_info.max


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

    def below(self, step: str) -> Misfit:
        """The same, seen from what holds the value under ``step``: ".name" or "[3]"."""
        self.place = step + self.place
        return self

    def __str__(self) -> str:
        return f"{self.place.removeprefix('.') or 'its content'} {self.told}"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlong = 60
_SHORT.maxlevel = 3


def shown(value: Any) -> str:
    """A value as Python writes it, on one line and cut short: it may be of any size and depth."""
    if value is None:
        return "null"
    try:
        text = _SHORT.repr(value)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 200 else f"{text[:196]} ..."


def check(kind: Any, value: Any) -> None:
    """Hold a value against a declared type, down to its last part; nothing is converted.

    Args:
        kind: bool, int, float (whole numbers pass, too), str, None, Any, Literal, list[T],
            tuple[T, ...] and tuple[A, B] (lists pass, too), dict[K, V], unions of these that
            Python's types tell apart, ``Annotated`` numbers with :class:`Within`, TypedDict or a
            dataclass as a dictionary (keys that it does not declare pass), or any other class.

    Raises:
        Misfit: naming the first place that does not fit. Numbers must be finite, and text must
            be what UTF-8 can hold, without NUL.
    """
    _checker(kind)(value)


@cache
def _checker(kind: Any) -> Callable[[Any], None]:
    """A function that raises Misfit for what is not of a kind."""
    accepted, wanted, inside = _parts(kind)
    if accepted is None:
        return lambda value: None

    def checked(value: Any) -> None:
        if type(value) not in accepted:
            raise Misfit.of(wanted, value)
        if inside is not None:
            inside(value)

    return checked


def _parts(kind: Any) -> tuple[tuple[type, ...] | None, str, Callable[[Any], None] | None]:
    """The exact types of a kind's values (None: any), what they are called, and a check of them."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return None, "anything", None
    if kind is None or kind is type(None):
        return (type(None),), "null", None
    if kind is str:
        return (str,), "of type str", _text
    if kind in (int, float) or origin is typing.Annotated:
        accepted, low, high, wanted = _number(kind)
        return accepted, wanted, _within(low, high, wanted)
    if origin is typing.Literal:
        wanted = f"one of {', '.join(map(str, arguments))}"
        return tuple({type(a) for a in arguments}), wanted, _among(arguments, wanted)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments)
    if origin in (list, tuple):
        accepted = (list,) if origin is list else (list, tuple)
        if origin is tuple and arguments[-1] is not Ellipsis:
            return accepted, f"a list of {len(arguments)}", _row(arguments)
        return accepted, "a list", _list(arguments[0])
    if origin is dict:
        return (dict, OrderedDict), "a mapping", _mapping(*arguments)
    if kind is dict:
        return (dict, OrderedDict), "a mapping", None
    if typing.is_typeddict(kind) or dataclasses.is_dataclass(kind):
        return (dict, OrderedDict), "a mapping", _record(kind)
    return (kind,), f"of type {kind.__name__}", None


def _number(kind: Any) -> tuple[tuple[type, ...], float, float, str]:
    base, *notes = typing.get_args(kind) or (kind,)
    accepted = (int,) if base is int else (int, float)
    if not notes:
        low, high = (-inf, inf) if base is int else (-MOST, MOST)
        return accepted, low, high, f"of type {base.__name__}"
    low, high = notes[0].low, notes[0].high
    return accepted, low, high, f"of type {base.__name__}, {low:g} to {high:g}"


def _within(low: float, high: float, wanted: str) -> Callable[[Any], None]:
    if (low, high) == (-MOST, MOST):
        wanted = "a finite number"

    def inside(value: Any) -> None:
        if not low <= value <= high:
            raise Misfit.of(wanted, value)

    return inside


def _text(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Misfit.of("text that UTF-8 can hold", value) from error
    if "\0" in value:
        raise Misfit.of("text without NUL", value)


def _among(allowed: tuple, wanted: str) -> Callable[[Any], None]:
    def inside(value: Any) -> None:
        if value not in allowed:
            raise Misfit.of(wanted, value)

    return inside


def _union(kinds: tuple) -> tuple[tuple[type, ...] | None, str, Callable[[Any], None]]:
    by_type: dict[type, Callable[[Any], None]] = {}
    for kind in kinds:
        for accepted in _parts(kind)[0]:
            by_type.setdefault(accepted, _checker(kind))
    wanted = " or ".join(_parts(kind)[1] for kind in kinds)
    return tuple(by_type), wanted, lambda value: by_type[type(value)](value)


def _list(kind: Any) -> Callable[[Any], None]:
    each = _checker(kind)

    def inside(values: Any) -> None:
        index = 0
        try:
            for index, value in enumerate(values):  # noqa: B007 the handler names it
                each(value)
        except Misfit as error:
            raise error.below(f"[{index}]") from None

    if kind not in (int, float) and typing.get_origin(kind) is not typing.Annotated:
        return inside
    accepted, low, high, _ = _number(kind)
    accepted = frozenset(accepted)

    def numbers(values: Any) -> None:
        # At the speed of C: annotation files hold tens of millions. Only a sum tells of NaN.
        try:
            fine = not values or (
                accepted.issuperset(map(type, values)) and low <= min(values)
                and max(values) <= high and abs(sum(values)) <= MOST
            )
        except OverflowError:
            fine = False
        if not fine:
            inside(values)

    return numbers


def _row(kinds: tuple) -> Callable[[Any], None]:
    each = [_checker(kind) for kind in kinds]

    def inside(values: Any) -> None:
        if len(values) != len(each):
            raise Misfit.of(f"a list of {len(each)}", values)
        for index, (value, one) in enumerate(zip(values, each, strict=True)):
            try:
                one(value)
            except Misfit as error:
                raise error.below(f"[{index}]") from None

    return inside


def _mapping(key_kind: Any, kind: Any) -> Callable[[Any], None]:
    of_key, each = _checker(key_kind), _checker(kind)

    def inside(values: Any) -> None:
        key = None
        try:
            for key, value in values.items():  # noqa: B007
                each(value)
        except Misfit as error:
            raise error.below(f".{key}" if isinstance(key, str) else f"[{shown(key)}]") from None
        for key in values:
            try:
                of_key(key)
            except Misfit as error:
                raise Misfit(f"has a key that {error.told}") from None

    return inside


def _record(kind: Any) -> Callable[[Any], None]:
    hints = typing.get_type_hints(kind, include_extras=True)
    if dataclasses.is_dataclass(kind):
        required = {
            field.name for field in dataclasses.fields(kind)
            if field.default is field.default_factory is dataclasses.MISSING
        }
    else:
        required = kind.__required_keys__
    each = {key: _checker(hint) for key, hint in hints.items()}

    def inside(values: Any) -> None:
        key = ""
        try:
            for key, one in each.items():
                if key in values:
                    one(values[key])
                elif key in required:
                    raise Misfit("is missing")
        except Misfit as error:
            raise error.below(f".{key}") from None

    return inside
