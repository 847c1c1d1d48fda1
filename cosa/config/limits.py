"""Checks of configuration values; each raises ``ValueError`` naming the key."""

from __future__ import annotations

from typing import Any


def one_of(config: Any, key: str, allowed: tuple[str, ...]) -> None:
    value = getattr(config, key)
    if value not in allowed:
        raise ValueError(f"{key} is {value!r}: use one of {', '.join(allowed)}")


def at_least(config: Any, low: float, *keys: str) -> None:
    for key in keys:
        if not getattr(config, key) >= low:
            raise ValueError(f"{key} is {getattr(config, key)}: it must be at least {low}")


def above(config: Any, low: float, *keys: str) -> None:
    for key in keys:
        if not getattr(config, key) > low:
            raise ValueError(f"{key} is {getattr(config, key)}: it must be above {low}")


def at_most(config: Any, high: float, *keys: str) -> None:
    for key in keys:
        if not getattr(config, key) <= high:
            raise ValueError(f"{key} is {getattr(config, key)}: it must be at most {high}")


def below(config: Any, high: float, *keys: str) -> None:
    for key in keys:
        if not getattr(config, key) < high:
            raise ValueError(f"{key} is {getattr(config, key)}: it must be below {high}")


def unit(config: Any, *keys: str) -> None:
    for key in keys:
        if not 0 <= getattr(config, key) <= 1:
            raise ValueError(f"{key} is {getattr(config, key)}: it must lie in 0..1")


def ordered(config: Any, low: str, high: str) -> None:
    a, b = getattr(config, low), getattr(config, high)
    if not 0 < a <= b:
        raise ValueError(f"{low} is {a} and {high} is {b}: both must be positive, in that order")


def normalization(config: Any, key: str, names: tuple[str, ...]) -> None:
    """A name, or mean and deviation of red, green and blue."""
    value = getattr(config, key)
    if value in names:
        return
    if isinstance(value, str) or [len(numbers) for numbers in value] != [3, 3]:
        raise ValueError(f"{key} is {value!r}: use {', '.join(names)} or two lists of three "
                         "numbers, mean and deviation of red, green and blue")
    mean, deviation = value
    if not all(0 <= number <= 1 for number in mean) or not all(number > 0 for number in deviation):
        raise ValueError(f"{key} is {value!r}: the means must lie in 0..1, as the colours do, and "
                         "the deviations above 0")


def positive_scales(config: Any) -> None:
    if not config.scales or any(not s > 0 for s in config.scales):
        raise ValueError(f"scales is {list(config.scales)}: give at least one, all positive")


def some_part(config: Any, *keys: str) -> None:
    """A regularizer that is on must have a part that is."""
    if config.weight > 0 and not any(getattr(config, key) for key in keys):
        raise ValueError(f"{' and '.join(keys)} are all 0: set weight to 0 instead")
