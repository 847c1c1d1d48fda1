"""Memory for work that runs in several threads: who has none left waits."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import resource
except ImportError:  # not on Windows
    resource = None

_CONTROL_GROUP = Path("/sys/fs/cgroup/memory.max")  # the limit of a container, or "max"
_UNKNOWN = 8 * 2**30  # bytes, where the system does not tell
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


def memory_size() -> int:
    """Bytes of main memory that this machine, its container, or this process may have."""
    sizes = []
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    if _CONTROL_GROUP.is_file():
        limit = _CONTROL_GROUP.read_text(encoding="ascii").strip()
        sizes += [int(limit)] if limit.isdigit() else []
    if resource is not None:
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        sizes += [limit] if limit != resource.RLIM_INFINITY else []
    return min(sizes, default=_UNKNOWN)
