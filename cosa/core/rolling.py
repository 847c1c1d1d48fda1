"""Rows that come from the top down, of which only those are held that are still asked for."""

from __future__ import annotations

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
        self._held: Tensor | None = None
        self._top = 0  # the row that the first one held is

    def take(self, rows: slice) -> Tensor:
        """Rows, which begin no higher than those of the last time: what is above is let go.

        Raises:
            ValueError: the parts end before.
        """
        first, end, _ = rows.indices(self._height)
        held = [] if self._held is None else [self._held]
        bottom = self._top + sum(part.shape[self._dim] for part in held)
        self._held = None
        if held and first > self._top:
            kept = max(0, bottom - first)
            held = [part.narrow(self._dim, first - self._top, kept) for part in held if kept]
            self._top = min(first, bottom)
        while bottom < end:
            part = next(self._parts, None)
            if part is None:
                raise ValueError(f"the rows end at {bottom} of {self._height}")
            above, bottom = bottom, bottom + part.shape[self._dim]
            if bottom <= first:
                self._top = bottom
                continue
            if not held:
                self._top = above
            held.append(part)
        self._held = held[0] if len(held) == 1 else torch.cat(held, self._dim)
        return self._held.narrow(self._dim, first - self._top, end - first)
