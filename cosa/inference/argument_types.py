"""What a word of the command line may be: each function takes the text and returns its value.

They raise ``argparse.ArgumentTypeError``, whose message goes behind the name of the option.
"""

from __future__ import annotations

import argparse
import math

from cosa.core.errors import did_you_mean
from cosa.inference.kinds import KINDS


def kinds(text: str) -> tuple[str, ...]:
    """The parts of a list such as "mask,cam", each a key of ``KINDS``."""
    chosen = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = next((kind for kind in chosen if kind not in KINDS), None)
    if unknown is not None or not chosen:
        known = f"; choose from {','.join(KINDS)}"
        raise argparse.ArgumentTypeError(
            f"'{unknown or text}' cannot be saved{did_you_mean(unknown or '', KINDS) or known}"
        )
    return chosen


def filled(text: str) -> str:
    """A path: "" would be taken for the current folder, or for an option that is not given."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty: give a path")
    return text


def positive_integer(text: str) -> int:
    """A whole number of at least 1."""
    try:
        if int(text) >= 1:
            return int(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"'{text}' must be a whole number of at least 1")


def number(text: str) -> float:
    """A finite number of at least 0."""
    value = _float(text)
    if 0 <= value < math.inf:
        return value
    raise argparse.ArgumentTypeError(f"'{text}' must be a number of at least 0")


def positive_number(text: str) -> float:
    """A finite number above 0."""
    value = _float(text)
    if 0 < value < math.inf:
        return value
    raise argparse.ArgumentTypeError(f"'{text}' must be a number above 0")


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = _float(text)
    if 0 <= value <= 1:
        return value
    raise argparse.ArgumentTypeError(f"'{text}' must be a number from 0 to 1")


def _float(text: str) -> float:
    """NaN, which is in no range, for what is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan
