"""What a word of the command line may be: each function takes the text and returns its value.

They raise ``argparse.ArgumentTypeError``, whose message goes behind the name of the option.
"""

from __future__ import annotations

import argparse

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
