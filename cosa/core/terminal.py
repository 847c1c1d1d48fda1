"""What the person at the terminal sees."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from cosa.core import distributed


def progress_bar(**options: Any) -> tqdm:
    """A tqdm bar on stderr: lively on a terminal, a line in half a minute in a log file.

    Of several processes, only the first shows one.
    """
    options["disable"] = options.get("disable", False) or not distributed.is_main()
    return tqdm(mininterval=0.1 if sys.stderr.isatty() else 30.0, **options)


def note(message: str) -> None:
    """One line on stderr about a choice the program made for the user, from one process."""
    if distributed.is_main():
        print(f"note: {message}", file=sys.stderr)
