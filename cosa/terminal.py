"""What the person at the terminal sees, and how they stop the program."""

from __future__ import annotations

import signal
import sys
import time
from typing import Any

from tqdm import tqdm

from cosa import distributed

GRACE = 1.0
"""Seconds in which a repeated signal is the same wish: key presses bounce, and a batch system
signals both the process and its group."""


def progress_bar(**options: Any) -> tqdm:
    """A tqdm bar on stderr: lively on a terminal, a line in half a minute in a log file.

    Of several processes, only the first shows one.
    """
    options["disable"] = options.get("disable", False) or not distributed.is_main()
    return tqdm(mininterval=0.1 if sys.stderr.isatty() else 30.0, **options)


class StopRequest:
    """Remembers SIGINT or SIGTERM so that the loop can save before it leaves.

    ``signal`` is its number, 0 as long as there is none. A further one after ``GRACE`` seconds
    ends the program at once. Outside of the ``with`` block all is as before.
    """

    def __enter__(self) -> StopRequest:
        self.signal = 0
        self._since = 0.0
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._former = {number: signal.signal(number, self._remember) for number in numbers}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether a signal came."""
        return self.signal != 0

    def _remember(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if not self.signal:
            self.signal, self._since = number, now
        elif now - self._since > GRACE:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
