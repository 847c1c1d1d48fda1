"""What the person at the terminal sees: every line that a program prints is printed here."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from tqdm import tqdm

from cosa.core import distributed
from cosa.core.text import NAME, shown


def progress_bar(**options: Any) -> tqdm:
    """A tqdm bar on stderr: lively on a terminal, a line in half a minute in a log file.

    Of several processes, only the first shows one.
    """
    if not distributed.is_main():
        options["disable"] = True
    if "desc" in options:
        options["desc"] = shown(options["desc"], NAME)
    return tqdm(mininterval=0.1 if sys.stderr.isatty() else 30.0, **options)


def say(*lines: object, error: bool = False) -> None:
    """Print lines on stdout, or on stderr, above any progress bar.

    Each comes out as one line of visible characters, whatever names are in it (see ``shown``). A
    text of several lines is to be split before its names are in it, or to have them shown.
    """
    stream = sys.stderr if error else sys.stdout
    with tqdm.external_write_mode(stream):
        print(*map(shown, lines), sep="\n", file=stream, flush=True)


def tell(message: str) -> None:
    """One line on stderr, from one process."""
    if distributed.is_main():
        say(message, error=True)


def note(message: str) -> None:
    """``tell`` of a choice that the program made for the user."""
    tell(f"note: {message}")


def warn(message: str) -> None:
    """``tell`` of something that is wrong but stops nothing."""
    tell(f"warning: {message}")


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that shows the words it refuses."""

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2 after the usage and one line."""
        super().error(shown(message))
