"""SIGINT and SIGTERM: how people and batch systems stop a program, and what is kept."""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from cosa.core import distributed

Item = TypeVar("Item")

GRACE = 1.0
"""Seconds in which a repeated signal is the same wish: key presses bounce, and a batch system
signals both the process and its group."""


class StopRequest:
    """Remembers SIGINT or SIGTERM so that the loop can save before it leaves.

    ``signal`` is its number, 0 as long as there is none. A further one after ``GRACE`` seconds
    ends the program at once. Outside of the ``with`` block all is as before.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._since = 0.0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._former[number] = signal.signal(number, self._remember)
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


class Interrupts:
    """The first SIGINT or SIGTERM stops the program, further ones do nothing.

    It raises ``KeyboardInterrupt`` where that does no harm: in a block of ``raising``, at once or
    as soon as one begins. Elsewhere it is remembered: ``number`` is that of the signal, 0 as long
    as there is none. Signals that are ignored, as those of a background job may be, stay so.
    Outside of the ``with`` block all is as before; in threads other than the main one nothing
    happens.
    """

    def __init__(self) -> None:
        self.number = 0
        self._raising = False
        self._since = 0.0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def keep(self) -> None:
        """Take signals to the very end of this process, which a late one does not kill either."""
        self.__enter__()
        # Python puts back its own handlers before it has finished leaving, but leaves this.
        for number in self._former:
            atexit.register(signal.signal, number, signal.SIG_IGN)

    @property
    def exit_code(self) -> int:
        """What a program leaves with that the signal has stopped."""
        return 128 + (self.number or signal.SIGINT)

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Raise ``KeyboardInterrupt`` in this block once there is a signal."""
        self._raising = True
        try:
            if self.number:
                raise KeyboardInterrupt
            yield
        finally:
            self._raising = False

    def awaiting(self, items: Iterator[Item]) -> Iterator[Item]:
        """The same items; a signal raises while one is awaited, not while it is dealt with."""
        while True:
            with self.raising():
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def _handle(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self._since = number, now
            if self._raising:
                raise KeyboardInterrupt
        elif now - self._since > GRACE and distributed.is_main():
            self._since = now
            with suppress(OSError):  # print() cannot be called while it is at work
                os.write(2, b"\nstopping: what has begun is finished first\n")
