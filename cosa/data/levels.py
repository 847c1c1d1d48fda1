"""Values of any depth to 8-bit RGB, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from cosa.data.layout import EIGHT, Layout, Range
from cosa.data.orientation import AS_STORED, Turn
from cosa.data.reading import BY_DEPTH, Extent, Reading
from cosa.data.samples import Samples

Levels = Callable[[np.ndarray], np.ndarray]


class Rendering:
    """The way from samples to levels; whoever has seen all strips knows the values, too.

    Args:
        samples: of an image.
        reading: what becomes of them.

    Raises:
        Clause: a clause about a file without the bands that are asked for.
    """

    def __init__(self, samples: Samples, reading: Reading = BY_DEPTH) -> None:
        layout = samples.layout
        self._samples, self._reading = samples, reading
        self._bands = layout.chosen(reading.bands)
        self._opacity = () if reading.bands or layout.alpha is None else (layout.alpha,)
        self._range = _range(samples, self._bands, reading)
        self._levels, self._found = _levels(layout, self._range), _Found(self._range)

    def strips(self) -> Iterator[tuple[int, Image.Image]]:
        """The image as it is stored, in parts of whole rows of 8-bit RGB, with the first row's
        number.
        """
        layout, bands, reading = self._samples.layout, self._bands, self._reading
        for top, values in self._samples.strips((*bands, *self._opacity)):
            colours = values[..., : len(bands)]
            self._found.add(colours)
            seen = self._levels(colours)
            if self._opacity:
                share = _finite(values[..., len(bands) :]) / _most(layout, values.dtype)
                seen = _on_white(seen, share, layout.premultiplied)
            elif layout.key is not None and not reading.bands:
                seen[(colours == np.asarray(layout.key)).all(axis=-1)] = 255
            yield top, Image.fromarray(seen[..., 0] if len(bands) == 1 else seen).convert("RGB")

    @property
    def extent(self) -> Extent | None:
        """The values of the strips so far; None for 8 bits that become what they are."""
        limits, chosen = self._samples.layout.limits, self._reading.value_range
        if chosen is None and limits == EIGHT:
            return None
        known, found = chosen is not None or limits is not None, self._found
        return Extent(found.lowest, found.highest, *self._range, known, found.above)


def rendered(
    samples: Samples, turn: Turn = AS_STORED, reading: Reading = BY_DEPTH
) -> tuple[Image.Image, Extent | None]:
    """Upright 8-bit RGB of an image, and its values; None for 8 bits that become what they are.

    Beside the samples and the result, which takes 4 bytes a pixel, the memory that this needs does
    not grow with the image.

    Raises:
        Clause: a clause about a file without the bands that are asked for.
    """
    rendering = Rendering(samples, reading)
    result = Image.new("RGB", turn.size(samples.size))
    for top, part in rendering.strips():
        bottom = top + part.height
        result.paste(turn.applied(part), turn.corner(top, bottom, samples.size[1]))
    return result, rendering.extent


class _Found:
    """The finite values of an image so far, against a range, in the file's own values."""

    def __init__(self, range_: Range) -> None:
        self.lowest, self.highest = np.inf, -np.inf
        self._high, self._beyond, self._all = range_[1], 0, 0

    def add(self, values: np.ndarray) -> None:
        if values.dtype.kind == "f":
            values = values[np.isfinite(values)]
        if values.size:
            self.lowest = min(self.lowest, float(values.min()))
            self.highest = max(self.highest, float(values.max()))
            self._beyond += int(np.count_nonzero(values > self._high))
            self._all += values.size

    @property
    def above(self) -> float:
        return self._beyond / max(1, self._all)


def _range(samples: Samples, bands: tuple[int, ...], reading: Reading) -> Range:
    """What becomes black and white, in the file's own values."""
    if reading.value_range is not None:
        return reading.value_range
    return samples.layout.limits or _guessed(samples, bands)


def _guessed(samples: Samples, bands: tuple[int, ...]) -> Range:
    """The narrowest of the usual ranges that holds all values, else their own."""
    low, high, fractions = np.inf, -np.inf, False
    for _, values in samples.strips(bands):
        fractions = values.dtype.kind == "f"
        values = _finite(values)
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    if low >= 0 and high <= 65535:
        return 0.0, float(next(full for full in (1,) * fractions + (255, 65535) if high <= full))
    return low, high


def _levels(layout: Layout, range_: Range) -> Levels:
    """What makes levels, 0..255, of samples; a table where there are few values."""
    low, high = range_
    span = max(high - low, np.finfo(np.float64).tiny)

    def computed(values: np.ndarray) -> np.ndarray:
        levels = np.rint(np.clip((_finite(values) - low) / span, 0, 1) * 255).astype(np.uint8)
        return 255 - levels if layout.inverted else levels

    tables: dict[np.dtype, np.ndarray] = {}

    def looked_up(values: np.ndarray) -> np.ndarray:
        if values.dtype not in (np.uint8, np.uint16):
            return computed(values)
        if values.dtype not in tables:
            tables[values.dtype] = computed(np.arange(np.iinfo(values.dtype).max + 1))
        return tables[values.dtype][values]

    return looked_up


def _on_white(levels: np.ndarray, share: np.ndarray, premultiplied: bool) -> np.ndarray:
    """Levels (h, w, bands) over white where their opacity (h, w, 1) is less than 1."""
    share = np.clip(share, 0, 1)
    own = levels if premultiplied else levels * share
    return np.rint(np.minimum(own + 255 * (1 - share), 255)).astype(np.uint8)


def _most(layout: Layout, dtype: np.dtype) -> float:
    """The opacity of what is opaque."""
    if layout.limits is not None:
        return layout.limits[1]
    return 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, 0).astype(np.float64)
