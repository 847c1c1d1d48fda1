"""Large things in parts, so that the memory for a step does not grow with them."""

from __future__ import annotations

from collections.abc import Iterator


def parts(total: int, most: int) -> Iterator[slice]:
    """``range(total)`` in order, as slices of at most ``most`` items, though never of none."""
    step = max(1, most)
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))
