"""Rows that come from the top down, of which only those are held that are still asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor


class Rolling:
    """A window, moving downward, on a tensor that is made or read part by part.

    Args:
        parts: tensors of whole rows, in order; all are of one shape but for the number of rows.
        height: rows of all parts together.
        dim: the dimension of the rows.
    """

    def __init__(self, parts: Iterator[Tensor], height: int, dim: int) -> None:
        self._parts, self._height, self._dim = parts, height, dim
        self._held: deque[tuple[int, Tensor]] = deque()  # the number of the first row, the rows
        self._bottom = 0

    def take(self, rows: slice) -> Tensor:
        """Rows, which begin no higher than those of the last time: what is above is let go.

        Raises:
            ValueError: the parts end before.
        """
        first, end, _ = rows.indices(self._height)
        self._let_go(first)
        while self._bottom < end:
            part = next(self._parts, None)
            if part is None:
                raise ValueError(f"the rows end at {self._bottom} of {self._height}")
            self._held.append((self._bottom, part))
            self._bottom += part.shape[self._dim]
            self._let_go(first)
        taken = []
        for top, part in self._held:
            start, stop = max(first - top, 0), min(end - top, part.shape[self._dim])
            if start < stop:
                taken.append(part.narrow(self._dim, start, stop - start))
        return taken[0] if len(taken) == 1 else torch.cat(taken, self._dim)

    def _let_go(self, first: int) -> None:
        """Of the parts that lie above the row ``first``."""
        while self._held and self._held[0][0] + self._held[0][1].shape[self._dim] <= first:
            self._held.popleft()
