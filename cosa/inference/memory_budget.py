"""Memory for work that runs in several threads: who has none left waits."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_DECODING = 8  # bytes a pixel: what the file holds, and the image that is made of it


class Room:
    """An amount that threads share; each waits until its part is free.

    What is larger than all of it is let in alone.
    """

    def __init__(self, size: int) -> None:
        self.size, self._taken = size, 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, amount: int) -> Iterator[None]:
        """Hold a part of the room within the context."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + amount <= self.size)
            self._taken += amount
        try:
            yield
        finally:
            with self._changed:
                self._taken -= amount
                self._changed.notify_all()


def decoding_memory(size: tuple[int, int]) -> int:
    """Bytes that decoding an image takes, whose sides are these."""
    return _DECODING * math.prod(size)
