"""A network that sees large images through overlapping windows, from the top down."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cosa.cam import MapRows
from cosa.network import NetworkOutput

Place = tuple[int, int]
"""(top, left) of a window on the network's grid."""
Bands = dict[str, Tensor]
"""Name of a map -> its next rows (V, K, n, w)."""


@dataclass
class SlidingNetwork:
    """Windows over an image, their maps blended, a band of rows after the other.

    All windows of an image have one size: ``window``, or the image's side where that is smaller.
    They are spread evenly, the first and the last flush with the borders, at most ``step``
    apart (up to the rounding to whole positions). At every position of the grid the maps are
    averaged with the weights sin²(π (i + 1/2) / n), i = 0..n-1 along each side of a window, so
    that a map fades out towards the border of its window. Class scores are the largest of all
    windows. Windows lie on whole positions, hence no map is resampled. A segmentation of a finer
    grid is blended on that grid.

    Beside one batch of windows, only as many rows of the image and of the maps are held as a
    window is high.
    """

    network: Callable[[Tensor], NetworkOutput]
    """A ``CoSANetwork`` in evaluation mode."""
    window: int
    """Side in pixels, rounded to whole positions."""
    step: int
    """Largest step in pixels, rounded to whole positions, at most ``window``."""
    batch_size: int
    """Windows that go through the network at once, of each view of the image."""
    maps: Collection[str]
    """Names of the maps to blend: "seg", "cam", "aux_cam"."""

    def see(
        self, image: Tensor | MapRows, flip: bool, keep: Callable[[Bands], None]
    ) -> Tensor:
        """Show the network an image, and hand on the blended maps as they are finished.

        Args:
            image: (3, H, W) in [0, 1]; H and W are multiples of the network's stride. Rows are
                asked for from the top down, once.
            flip: also show it mirrored, in the same forward passes.
            keep: takes the maps of ``maps``, float32, from the top down, each time of some rows
                of the grid of H / stride rows and W / stride columns, of the segmentation the
                rows of its own grid at the same place. Of their V views the second is that of the
                mirrored image, turned back.

        Returns:
            (V, C) class scores, float32.
        """
        stride = self.network.stride
        grid = image.shape[1] // stride, image.shape[2] // stride
        longest, step = (max(1, round(side / stride)) for side in (self.window, self.step))
        size = min(longest, grid[0]), min(longest, grid[1])
        places = [
            (top, left)
            for top in starts(grid[0], size[0], step)
            for left in starts(grid[1], size[1], step)
        ]
        blend, scores = _Blend(grid, size), None
        windows = self._windows(image, flip, places, size)
        for first in range(0, len(places), self.batch_size):
            chunk = places[first : first + self.batch_size]
            output = self.network(torch.cat([next(windows) for _ in chunk]))
            # (windows, V, ...): the views of one place are neighbours.
            views = {n: getattr(output, n).unflatten(0, (len(chunk), -1)) for n in self.maps}
            for index, place in enumerate(chunk):
                if finished := blend.above(place[0]):
                    keep(_turned_back(finished))
                blend.add(place, {name: view[index] for name, view in views.items()})
            best = output.logits.float().unflatten(0, (len(chunk), -1)).amax(dim=0)
            scores = best if scores is None else torch.maximum(scores, best)
        if finished := blend.above(grid[0]):
            keep(_turned_back(finished))
        return scores

    def _windows(
        self, image: Tensor | MapRows, flip: bool, places: list[Place], size: tuple[int, int]
    ) -> Iterator[Tensor]:
        """(V, 3, h, w) of each place. Of the mirrored image, it is that of the mirrored place."""
        stride, width = self.network.stride, image.shape[2]
        height, wide = (stride * side for side in size)
        held, band = None, None
        for top, left in places:
            if top != held:
                band = None  # it goes before the next one comes: both are large
                held, band = top, image[:, stride * top : stride * top + height]
            views = [band[..., stride * left : stride * left + wide]]
            if flip:
                right = width - stride * left
                views.append(band[..., right - wide : right].flip(-1))
            yield torch.stack(views)
            del views


class _Blend:
    """Weighted means of maps that cover parts of a grid, finished from the top down."""

    def __init__(self, grid: tuple[int, int], size: tuple[int, int]) -> None:
        self._grid, self._size = grid, size
        self._top = 0  # the row that the first row of the sums is of
        self._sums: dict[str, _Sums] = {}

    def add(self, place: Place, maps: Bands) -> None:
        """Add the maps (V, K, h, w) of a window, whose top is the one ``above`` was told last.

        A map may be so many times as fine as the grid, along both sides.
        """
        for name, part in maps.items():
            if name not in self._sums:
                self._sums[name] = _Sums(part, self._grid[1], self._size)
            self._sums[name].add(place[1], part)

    def above(self, row: int) -> Bands:
        """The means of the rows above ``row``, which no further window touches."""
        done, self._top = min(row - self._top, self._size[0]), row
        return {name: sums.take(done) for name, sums in self._sums.items()} if done else {}


class _Sums:
    """The rows of a map that windows still touch: weighted sums, and the sums of the weights.

    Args:
        part: (V, K, h, w), of any window; float32 on its device is what is summed.
        width: of the image, in positions of the network's grid.
        size: (height, width) of a window, in these; the map may be so many times as fine.
    """

    def __init__(self, part: Tensor, width: int, size: tuple[int, int]) -> None:
        self._finer = part.shape[-1] // size[1]
        height, wide = part.shape[-2:]
        self._weight = torch.outer(fade(height), fade(wide)).to(part.device)
        self._weights = self._weight.new_zeros(height, self._finer * width)
        self._total = self._weight.new_zeros(*part.shape[:2], *self._weights.shape)

    def add(self, left: int, part: Tensor) -> None:
        columns = slice(self._finer * left, self._finer * left + part.shape[-1])
        self._total[..., columns] += part * self._weight
        self._weights[:, columns] += self._weight

    def take(self, rows: int) -> Tensor:
        """The means of the upper rows, so many of the network's grid, which make room."""
        done = self._finer * rows
        means = self._total[..., :done, :] / self._weights[:done]
        for sums in (self._total, self._weights):
            kept = sums[..., done:, :].clone()
            sums.zero_()[..., : kept.shape[-2], :] = kept
        return means


def _turned_back(bands: Bands) -> Bands:
    return {name: torch.cat([band[:1], band[1:].flip(-1)]) for name, band in bands.items()}


def starts(length: int, window: int, step: int) -> list[int]:
    """Where windows begin so that they cover 0..length evenly, at most about ``step`` apart."""
    if length <= window:
        return [0]
    count = math.ceil((length - window) / step) + 1
    return [round(k * (length - window) / (count - 1)) for k in range(count)]


def fade(length: int) -> Tensor:
    """Weights (length,) float32 in (0, 1] of a window, largest in its middle."""
    positions = torch.arange(length, dtype=torch.float64) + 0.5
    return torch.sin(math.pi * positions / length).square().float()
