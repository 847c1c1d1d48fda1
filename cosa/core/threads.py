"""How many threads there should be, and work that is shared out to them."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_READ_THREADS = 16

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""What Linux grants a container: microseconds of processor time, or max, and per how many."""


def core_count() -> int:
    """Cores that this process may use: those of the machine, less what it is barred from."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    if _QUOTA.is_file():
        quota, period = _QUOTA.read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    return cores


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """``[function(item) for item in items]`` by threads, for work that waits for the disk."""
    return list(parallel_map(function, items, _READ_THREADS, 4 * _READ_THREADS))


def parallel_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int
) -> Iterator[Result]:
    """Map in threads, in order, with at most ``ahead`` items begun and not yet handed out.

    ``items`` is advanced by the caller's thread. When the generator is closed, what has begun is
    finished and the rest dropped. An exception of ``function`` is raised at its item's turn.
    """
    pool = ThreadPoolExecutor(workers)
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= ahead or pending[0].done():
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
