"""What an option may be: declared beside its default, checked in one place, told in one way."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from cosa.core.declared import shown

DOMAIN = "domain"
"""The key of a field's metadata under which its ``Domain`` is."""


class Domain(Protocol):
    """The values that an option may have."""

    def refusal(self, value: Any) -> str:
        """What the value must be, as a clause; "" if it is that."""


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; of lists and dictionaries, each number."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.12g}..{self.high:.12g}" if isinstance(self.high, float) else (
            f"{self.low}..{self.high}")

    def refusal(self, value: Any) -> str:
        if all(self.low <= number <= self.high for number in _numbers(value)):
            return ""
        return f"{'each' if isinstance(value, tuple | list) else 'it'} must lie in {self}"


@dataclass(frozen=True)
class Moment:
    """A point in a training, or a distance: a whole number of iterations, or a share of them."""

    low: int = 0
    high: int = 10**9
    """So far off is never."""

    def refusal(self, value: Any) -> str:
        if type(value) is int and self.low <= value <= self.high:
            return ""
        if type(value) is float and (0 < value < 1 or value == self.low == 0):
            return ""
        return (f"it must be a whole number of iterations in {self.low}..{self.high}, or a share "
                "of the training between 0 and 1")


@dataclass(frozen=True)
class Several:
    """One number or more, each in a range."""

    each: Range
    most: int = 32

    def refusal(self, value: Any) -> str:
        if not 1 <= len(value) <= self.most:
            return f"give at least one number and at most {self.most}"
        return self.each.refusal(value)


@dataclass(frozen=True)
class Tuple:
    """Numbers of which each has a range of its own."""

    ranges: tuple[Range, ...]

    def refusal(self, value: Any) -> str:
        if all(not part.refusal(x) for part, x in zip(self.ranges, value, strict=True)):
            return ""
        return f"the numbers must lie in {', '.join(map(str, self.ranges))}"


@dataclass(frozen=True)
class Choice:
    """One of some words."""

    words: tuple[str, ...]

    def refusal(self, value: Any) -> str:
        return "" if value in self.words else f"use one of {', '.join(map(repr, self.words))}"


@dataclass(frozen=True)
class Filled:
    """A text that is not empty, and what it is."""

    what: str

    def refusal(self, value: Any) -> str:
        return "" if value else f"it is {self.what} and must not be empty"


SHARE = Range(0, 1)
BELOW_ONE = Range(0, 0.9999999)
"""The decay of an average, which at 1 would never move."""
WEIGHT = Range(0, 1e6)
"""Of a term, or of a kernel."""
MOMENT = Moment()
SEED = Range(0, 2**63 - 1)
SIDE = Range(1, 16384)
"""In pixels, of what a network sees."""
SCALE = Range(0.01, 16)
BATCH = Range(1, 65536)
CHANNELS = Range(1, 65536)
WORKERS = Range(-1, 256)
"""Processes; -1 stands for a number that the program chooses."""
THREADS = Range(1, 256)


def option(default: Any, domain: Domain) -> Any:
    """A field of a dataclass, with what it may be; a class as default makes one for each."""
    how = "default_factory" if isinstance(default, type) else "default"
    return dataclasses.field(**{how: default}, metadata={DOMAIN: domain})


def check(options: Any, called: Callable[[str], str] = str) -> None:
    """Hold each field of a dataclass against its domain; None is an option that is not given.

    Args:
        called: makes the name in the sentence of a field's name.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    for item in dataclasses.fields(options):
        domain = item.metadata.get(DOMAIN)
        if domain is None:
            continue
        for name, value in _leaves(called(item.name), getattr(options, item.name)):
            reason = "" if value is None else domain.refusal(value)
            if reason:
                value = list(value) if isinstance(value, tuple) else value
                raise ValueError(f"{name} is {shown(value)}: {reason}")


def reader(kind: type, domain: Range | None = None) -> Callable[[str], Any]:
    """A reader of ints or floats, in a range if there is one, for argparse."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"'{text}' must be {wanted}") from None
        if domain is not None and domain.refusal(value):
            raise argparse.ArgumentTypeError(f"{text}: {domain.refusal(value)}")
        return value

    return read


def whole(low: int, high: int) -> Callable[[str], int]:
    """A reader of integers in a range, for argparse."""
    return reader(int, Range(low, high))


def real(low: float, high: float) -> Callable[[str], float]:
    """A reader of numbers in a range, for argparse; NaN lies in none."""
    return reader(float, Range(low, high))


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The value, or those in a dictionary, by their dotted names."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key, inner in value.items():
        yield from _leaves(f"{name}.{key}", inner)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, tuple | list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
