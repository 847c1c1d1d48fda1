"""Memory for work that runs in several threads: who has none left waits."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CONTROL_GROUP = Path("/sys/fs/cgroup/memory.max")  # the limit of a container, or "max"
_UNKNOWN = 8 * 2**30  # bytes, where the system does not tell


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


def memory_size() -> int:
    """Bytes of main memory that this machine, or its container, has."""
    sizes = []
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    if _CONTROL_GROUP.is_file():
        limit = _CONTROL_GROUP.read_text(encoding="ascii").strip()
        sizes += [int(limit)] if limit.isdigit() else []
    return min(sizes, default=_UNKNOWN)
