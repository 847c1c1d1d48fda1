"""A network that sees large images through overlapping windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from cosa.network import NetworkOutput


@dataclass
class SlidingNetwork:
    """Windows over an image, their maps blended; what ``multi_scale`` takes as a network.

    All windows of an image have one size: ``window``, or the image's side where that is smaller.
    They are spread evenly, the first and the last flush with the borders, at most ``step``
    apart (up to the rounding to whole positions). At every position of the grid the maps are
    averaged with the weights sin²(π (i + 1/2) / n), i = 0..n-1 along each side of a window, so
    that a map fades out towards the border of its window. Class scores are the largest of all
    windows. Windows lie on whole positions, hence no map is resampled.

    Beside one batch of windows, only maps on that grid are held.
    """

    network: Callable[[Tensor], NetworkOutput]
    """A ``CoSANetwork`` in evaluation mode."""
    window: int
    """Side in pixels, rounded to whole positions."""
    step: int
    """Largest step in pixels, rounded to whole positions, at most ``window``."""
    batch_size: int
    """Windows that go through the network at once, of each image of the batch."""
    maps: Collection[str]
    """Names of the maps to blend: "seg", "cam", "aux_cam"."""

    @property
    def stride(self) -> int:
        """Of the network."""
        return self.network.stride

    def __call__(self, images: Tensor) -> SimpleNamespace:
        """Blended maps of a batch.

        Args:
            images: (B, 3, H, W) in [0, 1]; H and W are multiples of the network's stride.

        Returns:
            ``logits`` (B, C) and the maps of ``maps`` (B, K, H / stride, W / stride), float32.
        """
        stride = self.stride
        grid = images.shape[-2] // stride, images.shape[-1] // stride
        longest, step = (max(1, round(side / stride)) for side in (self.window, self.step))
        size = min(longest, grid[0]), min(longest, grid[1])
        places = [
            (top, left)
            for top in starts(grid[0], size[0], step)
            for left in starts(grid[1], size[1], step)
        ]
        weight = torch.outer(fade(size[0]), fade(size[1])).to(images.device)
        blend = _Blend(grid, size, weight)
        scores = None
        for first in range(0, len(places), self.batch_size):
            chunk = places[first : first + self.batch_size]
            output = self.network(torch.cat([self._cut(images, place, size) for place in chunk]))
            # (windows, B, ...): the windows of one place are neighbours.
            views = {n: getattr(output, n).unflatten(0, (len(chunk), -1)) for n in self.maps}
            for index, place in enumerate(chunk):
                blend.add(place, {name: view[index] for name, view in views.items()})
            best = output.logits.unflatten(0, (len(chunk), -1)).amax(dim=0)
            scores = best if scores is None else torch.maximum(scores, best)
        return SimpleNamespace(logits=scores, **blend.result())

    def _cut(self, images: Tensor, place: tuple[int, int], size: tuple[int, int]) -> Tensor:
        top, left, height, width = (self.stride * value for value in (*place, *size))
        return images[:, :, top : top + height, left : left + width]


class _Blend:
    """Weighted means of maps that cover parts of a grid."""

    def __init__(self, grid: tuple[int, int], size: tuple[int, int], weight: Tensor) -> None:
        self.grid, self.size, self.weight = grid, size, weight
        self.weights = weight.new_zeros(grid)
        self.sums: dict[str, Tensor] = {}

    def add(self, place: tuple[int, int], maps: dict[str, Tensor]) -> None:
        rows = slice(place[0], place[0] + self.size[0])
        columns = slice(place[1], place[1] + self.size[1])
        self.weights[rows, columns] += self.weight
        for name, part in maps.items():
            if name not in self.sums:
                self.sums[name] = part.new_zeros(*part.shape[:2], *self.grid)
            self.sums[name][..., rows, columns] += part * self.weight

    def result(self) -> dict[str, Tensor]:
        return {name: total / self.weights for name, total in self.sums.items()}


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
