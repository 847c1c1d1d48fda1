"""Where the maps that a network yields are kept until they are fused: in memory, or in a file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cosa.cam import MapRows


class Kept(Protocol):
    """Maps (K, h, w) that come a few rows at a time, and are read again as often as one likes."""

    def append(self, rows: Tensor) -> None:
        """Add rows (K, n, w) float32 at the bottom."""

    def channels(self, chosen: Sequence[int]) -> Tensor | MapRows:
        """Some of the maps, (len(chosen), h, w), on the device of the rows."""

    def close(self) -> None:
        """Let go of them."""


class InMemory:
    """Maps that are held."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def append(self, rows: Tensor) -> None:
        self._parts.append(rows)

    def channels(self, chosen: Sequence[int]) -> Tensor:
        self._parts = [torch.cat(self._parts, dim=1)]
        return self._parts[0][list(chosen)]

    def close(self) -> None:
        self._parts.clear()


class OnDisk:
    """Maps in a file without a name, which the system deletes however the process ends.

    Args:
        folder: in which there is room for it.

    Raises:
        OSError: it cannot be written; so does ``append``.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)
        self._height, self._row, self._device = 0, (0, 0), torch.device("cpu")

    def append(self, rows: Tensor) -> None:
        self._file.write(rows.movedim(1, 0).contiguous().cpu().numpy().data)
        self._height += rows.shape[1]
        self._row, self._device = (rows.shape[0], rows.shape[2]), rows.device

    def channels(self, chosen: Sequence[int]) -> MapRows:
        return _RowsOnDisk(self, (len(chosen), self._height, self._row[1]), self._device,
                           list(chosen))

    def read(self, first: int, end: int) -> Tensor:
        """(K, n, w) of the rows ``first``..``end``, on the CPU."""
        values = np.empty((end - first, *self._row), np.float32)
        self._file.seek(first * values[0].nbytes)
        if self._file.readinto(values.data) < values.nbytes:
            raise OSError("the file of the network's maps is not whole")
        return torch.from_numpy(values).movedim(0, 1)

    def close(self) -> None:
        self._file.close()


@dataclass
class _RowsOnDisk:
    """``MapRows`` of some of the maps in a file."""

    maps: OnDisk
    shape: tuple[int, int, int]
    device: torch.device
    chosen: list[int]

    def __getitem__(self, places: tuple[slice, slice]) -> Tensor:
        first, end, _ = places[1].indices(self.shape[1])
        return self.maps.read(first, end)[self.chosen].to(self.device)
