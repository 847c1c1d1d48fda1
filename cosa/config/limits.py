"""What sections have in common, and checks that go beyond the range of a number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cosa.core.ranges import check


class Section:
    """A dataclass whose options declare what they may be (``cosa.core.ranges.option``).

    A section whose options depend on each other extends ``__post_init__``. Every ``ValueError``
    names the key.
    """

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Normalization:
    """A name, or mean and deviation of red, green and blue in [0, 1]."""

    names: tuple[str, ...]

    def refusal(self, value: Any) -> str:
        if isinstance(value, str):
            if value in self.names:
                return ""
        elif [len(numbers) for numbers in value] == [3, 3]:
            mean, deviation = value
            if all(0 <= x <= 1 for x in mean) and all(0 < x <= 1000 for x in deviation):
                return ""
            return ("the means must lie in 0..1, as the colours do, and the deviations above 0, up "
                    "to 1000")
        return (f"use {', '.join(self.names)} or two lists of three numbers, mean and deviation of "
                "red, green and blue")


@dataclass(frozen=True)
class ValueRange:
    """A word, or two numbers of which the second is the larger one."""

    words: tuple[str, ...]
    most: float = 1e38

    def refusal(self, value: Any) -> str:
        if isinstance(value, str):
            there = value in self.words
        else:
            there = len(value) == 2 and -self.most <= value[0] < value[1] <= self.most
        named = ", ".join(repr(word) for word in self.words)
        return "" if there else f"use {named} or two numbers, [low, high], low below high"


@dataclass(frozen=True)
class Bands:
    """No number, or three of bands."""

    most: int = 10_000

    def refusal(self, value: Any) -> str:
        if len(value) in (0, 3) and all(1 <= number <= self.most for number in value):
            return ""
        return f"give three numbers from 1 to {self.most}, of red, green and blue, or none, []"


def ordered(config: Any, low: str, high: str) -> None:
    """The least of something must not exceed the largest."""
    a, b = getattr(config, low), getattr(config, high)
    if a > b:
        raise ValueError(f"{low} is {a} and {high} is {b}: it must not be the larger one")


def some_part(config: Any, *keys: str) -> None:
    """A regularizer that is on must have a part that is."""
    if config.weight > 0 and not any(getattr(config, key) for key in keys):
        raise ValueError(f"{' and '.join(keys)} are all 0: set weight to 0 instead")
