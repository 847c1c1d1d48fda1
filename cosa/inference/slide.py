"""The maps of an image in windows, over scales and flips, in memory that images do not blow up.

What the network says is kept on its own grid, and fused strip by strip when it is asked for.
However the pixels come and wherever the maps are kept, the same numbers go through the same
operations: the results are the same bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cosa.cam import MapRows, strips
from cosa.core.rolling import Rolling
from cosa.data.images import to_planes
from cosa.inference.kept_maps import InMemory, Kept, OnDisk
from cosa.inference.pixels import Size
from cosa.inference.windows import SlidingNetwork
from cosa.predict import scaled_size


@dataclass(frozen=True)
class PixelRows:
    """An image whose rows come from the top down."""

    size: Size
    strips: Callable[[], Iterator[Tensor]]
    """Begins anew with each call: parts of whole rows, (n, W, 3) uint8 on the CPU."""


class _Planes:
    """``MapRows`` of an image: (3, H, W) float32 in [0, 1]; for a single pass."""

    def __init__(self, pixels: PixelRows, device: torch.device) -> None:
        self.shape, self.device = (3, *pixels.size), device
        self._rows = Rolling(pixels.strips(), pixels.size[0], dim=0)

    def __getitem__(self, places: tuple[slice, slice]) -> Tensor:
        return to_planes(self._rows.take(places[1])).to(self.device)


class MadeRows:
    """``MapRows`` of maps that are made from the top down; for a single pass.

    Args:
        parts: (K, n, w), in order.
        shape: (K, h, w).
        device: where they are.
    """

    def __init__(
        self, parts: Iterator[Tensor], shape: tuple[int, int, int], device: torch.device
    ) -> None:
        self.shape, self.device = shape, device
        self._rows = Rolling(parts, shape[1], dim=1)

    def __getitem__(self, places: tuple[slice, slice]) -> Tensor:
        return self._rows.take(places[1])


class SlidMaps:
    """What a network says about an image in windows.

    Args:
        sliding: the network; its ``maps`` are kept.
        pixels: of the image; each side is a whole number of the network's positions.
        scales, flip: see ``cosa.predict.multi_scale``.
        grid: (h, w) of the fused maps.
        device: of the network.
        folder: keeps the maps in files there; None: in memory.

    Attributes:
        logits: (C,) class scores, mean over scales and flips.

    Raises:
        OSError: a file cannot be written.
        UserError: the image cannot be read.
    """

    def __init__(
        self,
        sliding: SlidingNetwork,
        pixels: PixelRows,
        scales: Sequence[float],
        flip: bool,
        grid: Size,
        device: torch.device,
        folder: Path | None = None,
    ) -> None:
        self._grid, self._device, self._views = grid, device, 1 + flip
        self._kept: dict[str, list[Kept]] = {name: [] for name in sliding.maps}
        self._channels: dict[str, int] = {}
        passes: list[Tensor] = []
        with ExitStack() as failing:
            failing.callback(self.close)
            for scale in scales:
                for places in self._kept.values():
                    places.append(InMemory() if folder is None else OnDisk(folder))
                image = _scaled(pixels, scale, sliding.network.stride, device)
                passes += sliding.see(image, flip, self._keep).split(1)
            failing.pop_all()
        self.logits = torch.stack(passes).mean(dim=0)[0]

    def close(self) -> None:
        """Let go of what is kept."""
        for place in (place for places in self._kept.values() for place in places):
            place.close()

    def rows(self, name: str, channels: Sequence[int]) -> MadeRows:
        """Some maps of the image, fused, (len(channels), h, w), for a single pass.

        Logits are summed over the passes. Of CAMs, the larger of both flips is taken, summed over
        the scales, and not normalised.
        """
        shape = (len(channels), *self._grid)
        return MadeRows(self._fused(name, channels), shape, self._device)

    def whole(self, name: str, channels: Sequence[int]) -> Tensor:
        """The same as a tensor."""
        if not channels:  # PyTorch resizes no empty tensors
            return torch.zeros(0, *self._grid, device=self._device)
        return torch.cat([*self._fused(name, channels)], dim=1)

    def _keep(self, bands: dict[str, Tensor]) -> None:
        for name, band in bands.items():
            self._channels[name] = band.shape[1]
            # Resizing is linear: the sum of logits over the flips may come first.
            rows = sum(band) if name == "seg" else band.flatten(0, 1)
            self._kept[name][-1].append(rows)

    def _fused(self, name: str, channels: Sequence[int]) -> Iterator[Tensor]:
        views = 1 if name == "seg" else self._views
        for parts in zip(*self._resized(name, channels), strict=True):
            values = [values for _, values in parts]
            scales = (values[first : first + views] for first in range(0, len(values), views))
            yield sum(of_views[0] if name == "seg" else F.relu(torch.stack(of_views).amax(dim=0))
                      for of_views in scales)

    def _resized(
        self, name: str, channels: Sequence[int]
    ) -> Iterator[Iterator[tuple[slice, Tensor]]]:
        """Strips of the grid: of each scale, and for CAMs of each of its views; all the same."""
        for place in self._kept[name]:
            for view in range(1 if name == "seg" else self._views):
                chosen = [view * self._channels[name] + channel for channel in channels]
                yield strips(place.channels(chosen), self._grid)


def _scaled(
    pixels: PixelRows, scale: float, stride: int, device: torch.device
) -> MapRows:
    """The image at a scale, (3, H', W') in [0, 1]."""
    planes, size = _Planes(pixels, device), scaled_size(pixels.size, scale, stride)
    if size == pixels.size:
        return planes
    return MadeRows((values for _, values in strips(planes, size)), (3, *size), device)
