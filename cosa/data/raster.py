"""TIFF files of any size, read a few rows at a time by the package rasterio, and where they lie."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from cosa.core.foreign import open_regular
from cosa.core.parts import parts
from cosa.data.images import MAX_SIDE, explained
from cosa.data.layout import EIGHT, Clause, Layout, rows_at_once
from cosa.data.levels import Rendering
from cosa.data.modes import to_rgb
from cosa.data.reading import BY_DEPTH, Extent, Reading
from cosa.data.tiff import Tags, read_tags

INSTALL = "pip install rasterio"
"""What brings the package."""

REWRITE = ("rewrite it in tiles, gdal_translate -co TILED=YES -co COMPRESS=DEFLATE IN OUT.tif "
           "(without GDAL's programs: docs/inference.md)")
"""What to do with files that cannot be read in parts."""

MAX_BLOCK = 2**28
"""Bytes of a tile or strip, decoded; files of larger ones are refused."""

AT_ONCE = 2**23
"""Pixels that are read at once, or up to four times as many where a row of tiles has them."""

_PALETTE, _YCBCR = 3, 6

# It says so of each file without a georeference, though nobody has asked.
warnings.filterwarnings("ignore", message="Dataset has no geotransform")


def rasterio() -> ModuleType:
    """The package.

    Raises:
        Clause: a clause about a file, if it is not installed.
    """
    # Megabytes that GDAL holds of decoded tiles; its default is a part of the machine's memory.
    os.environ.setdefault("GDAL_CACHEMAX", "64")
    try:
        import rasterio
    except ImportError as error:
        raise Clause(f"needs a package that reads it in parts: {INSTALL}") from error
    return rasterio


class Ground:
    """Where the pixels of an image lie on the Earth, and which of them hold data.

    Files that are no TIFF files tell neither.

    Args:
        path: of the image.

    Attributes:
        place: ``crs`` and ``transform``, ``gcps`` or ``rpcs``, of ``rasterio.open``; empty if the
            file does not tell.
        tags: what else belongs to it.
        gaps: whether there may be pixels without data: by a value that means so, a mask, or a
            band of opacity.

    Raises:
        UserError: naming the file, if it is damaged or missing, turned though it lies somewhere,
            or if rasterio is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path, self._file = Path(path), None
        self.place: dict[str, Any] = {}
        self.tags: dict[str, str] = {}
        self.gaps = False
        with explained(self._path), ExitStack() as failing:
            with open_regular(self._path) as file:
                tags = read_tags(file)
            if tags is None:
                return
            self._file = _opened(self._path)
            failing.callback(self._file.close)  # not its context, which is of one thread
            self._look()
            if (self.place or self.gaps) and tags.orientation not in (None, 1):
                raise Clause("has a georeference or pixels without data, and is not stored "
                             "upright; save it upright")
            failing.pop_all()

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()

    def valid(self) -> Iterator[np.ndarray]:
        """Which pixels of an image with gaps hold data, from the top down: (n, W) bool.

        Raises:
            UserError: naming the file, if it is damaged.
        """
        with explained(self._path):
            for window in _windows(self._file):
                yield self._file.dataset_mask(window=window) > 0

    def _look(self) -> None:
        file, (points, crs) = self._file, self._file.gcps
        if file.crs is not None:
            self.place["crs"] = file.crs
        if not file.transform.is_identity:
            self.place["transform"] = file.transform
        elif points:
            self.place |= {"gcps": points, "crs": crs}
        if file.rpcs is not None:
            self.place["rpcs"] = file.rpcs
        if self.place and "AREA_OR_POINT" in file.tags():
            self.tags["AREA_OR_POINT"] = file.tags()["AREA_OR_POINT"]
        valid = rasterio().enums.MaskFlags.all_valid
        self.gaps = any(valid not in flags for flags in file.mask_flag_enums)


class Raster:
    """A TIFF file, opened, of which some rows are read at a time.

    The pixels are those of ``cosa.data.images.read_image`` for a file of that size, bit by bit.

    Args:
        path: of the file.
        reading: what becomes of its values.

    Attributes:
        size: (width, height) in pixels.
        extent: the values in the file, once all rows were read; None where they are 8 bits that
            become what they are.

    Raises:
        UserError: naming the file, if it is missing, no TIFF file, damaged, stored in parts that
            are too large, turned, without the bands that are to be read, or if rasterio is not
            installed.
    """

    def __init__(self, path: str | os.PathLike[str], reading: Reading = BY_DEPTH) -> None:
        self._path, self._reading = Path(path), reading
        self.extent: Extent | None = None
        with explained(self._path), ExitStack() as failing:
            tags = _tags(self._path)
            self._file = _opened(self._path)
            failing.callback(self._file.close)  # not its context, which is of one thread
            self._check(tags)
            self._samples = _Samples(self._file, tags, by_number=reading.bands is not None)
            self._samples.layout.chosen(reading.bands)
            failing.pop_all()
            self.size = self._samples.size

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def strips(self) -> Iterator[np.ndarray]:
        """The image from the top down, in parts of whole rows of RGB: (n, W, 3) uint8.

        Raises:
            UserError: naming the file, if it is damaged.
        """
        with explained(self._path):
            layout = self._samples.layout
            if layout.alpha is not None and layout.limits == EIGHT and self._reading == BY_DEPTH:
                # As Pillow puts 8 bits on white, whose rounding is another.
                for _, values in self._samples.strips(range(layout.colours + 1)):
                    yield np.array(to_rgb(Image.fromarray(values)))
                return
            rendering = Rendering(self._samples, self._reading)
            for _, part in rendering.strips():
                yield np.array(part)
            self.extent = rendering.extent

    def _check(self, tags: Tags) -> None:
        height, width = self._file.block_shapes[0]
        size = height * width * max(1, tags.bits // 8) * (1 if tags.separate else tags.samples)
        if size > MAX_BLOCK:
            raise Clause(f"is stored in parts of {height}x{width} pixels, too large to be read one "
                         f"by one; {REWRITE}")
        if (self._file.width, self._file.height) != tags.size:
            raise ValueError("its tags contradict each other")
        if max(tags.size) > MAX_SIDE:
            raise Clause(f"has a side of over {MAX_SIDE} pixels; cut it into parts")
        if tags.orientation not in (None, 1):
            raise Clause("is not stored upright, and too large to be turned; save it upright")


class _Samples:
    """``cosa.data.samples.Samples`` of an opened file, up to 8 bits as Pillow decodes them.

    Args:
        file: of rasterio.
        tags: of it.
        by_number: whether bands are asked for by their numbers.
    """

    def __init__(self, file: Any, tags: Tags, by_number: bool) -> None:
        self.size, self._file = tags.size, file
        self._needed: Sequence[int] | None = None
        self._decoded: Callable[[np.ndarray], np.ndarray] | None = None
        if tags.photometric in (_PALETTE, _YCBCR):  # the second, GDAL makes RGB of
            self.layout = Layout(3, 3, EIGHT)
            if tags.photometric == _PALETTE:
                colours = file.colormap(1)
                table = [colours.get(index, (0, 0, 0))[:3] for index in range(2**tags.bits)]
                palette = np.array(table, np.uint8)
                self._needed, self._decoded = [0], lambda values: palette[values[..., 0]]
            return
        self.layout = layout = tags.layout
        if layout.premultiplied and tags.samples == 4 and tags.bits == 8 and not by_number:
            self._needed, self._decoded = range(4), _straight
            self.layout = replace(layout, premultiplied=False)
        elif tags.samples == 1 and tags.kind == 1 and tags.bits <= 8:
            factor, inverted = 255 // (2**tags.bits - 1), 255 * layout.inverted
            self._decoded = lambda values: values * np.uint8(factor) ^ np.uint8(inverted)
            self.layout = replace(layout, limits=EIGHT, inverted=False)

    def strips(self, bands: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        read = self._needed or bands
        for window in _windows(self._file):
            values = self._file.read([1 + band for band in read], window=window)
            values = np.moveaxis(values, 0, -1)
            for rows in rows_at_once(self.size[0], len(values)):
                part = np.ascontiguousarray(values[rows])
                if self._decoded is not None:
                    part = self._decoded(part)
                if self._needed is not None:
                    part = part[..., list(bands)]
                yield window.row_off + rows.start, part


def _tags(path: Path) -> Tags:
    with open_regular(path) as file:
        tags = read_tags(file)
    if tags is None:
        raise Clause("is too large to be held, and no TIFF file, which alone are read in parts; "
                     f"{REWRITE}")
    return tags


def _opened(path: Path) -> Any:
    # Absolute: names such as zip:a.tif are more than a name to GDAL.
    return rasterio().open(Path(os.path.abspath(path)), driver="GTiff")


def _windows(file: Any) -> Iterator[Any]:
    """The rows of a file from the top down, those of whole rows of tiles at once."""
    tall, most = file.block_shapes[0][0], max(1, AT_ONCE // file.width)
    step = tall * (most // tall) or min(tall, 4 * most)
    for rows in parts(file.height, step):
        yield rasterio().windows.Window(0, rows.start, file.width, rows.stop - rows.start)


def _straight(values: np.ndarray) -> np.ndarray:
    """(h, w, 4) uint8 whose colours were multiplied by the opacity, as Pillow undoes it."""
    size = values.shape[1::-1]
    return np.asarray(Image.frombuffer("RGBA", size, values.tobytes(), "raw", "RGBa", 0, 1))

