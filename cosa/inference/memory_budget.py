"""Memory for work that runs in several threads: who has none left waits."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Bytes a pixel: what the file holds, twice as much where it is more than 8 bits, and the image that
# is made of it.
_DECODING, _DEEP = 8, 12


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


def decoding_memory(size: tuple[int, int], deep: bool = False) -> int:
    """Bytes that decoding an image takes, whose sides are these.

    Args:
        deep: whether its values have more than 8 bits.
    """
    return (_DEEP if deep else _DECODING) * math.prod(size)
