"""Masks as tiled, compressed TIFF files that lie where their images lie, written a few rows at a
time by the package rasterio."""

from __future__ import annotations

import errno
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cosa.core import IGNORE
from cosa.core.errors import UserError
from cosa.core.rolling import Rolling
from cosa.data.raster import Ground, rasterio
from cosa.inference.pixels import Size
from cosa.pictures.palette import Color, full_palette

TILE = 512
"""Side of the tiles, in pixels."""


class GeoTiffRows:
    """Writes a palette TIFF file of class indices.

    Where the image has gaps, its pixels without data become ``IGNORE``, which the file names as
    its value for that.

    Args:
        path: of the file, which is there already; it is written anew.
        ground: of the image; kept open until ``finish``.
        size: (height, width).
        palette: colours of the indices.

    Raises:
        UserError: there are gaps, and a class has the index ``IGNORE``.
        OSError: it cannot be written; so do the methods.
    """

    def __init__(
        self, path: Path, ground: Ground, size: Size, palette: Sequence[Color]
    ) -> None:
        if ground.gaps and len(palette) > IGNORE:
            raise UserError(f"a mask with the value {IGNORE} for pixels without data holds at most "
                            f"{IGNORE - 1} classes: save it as mask instead")
        self._path, self._top, self._sum = path, 0, 0
        self._valid: Rolling | None = None
        if ground.gaps:
            self._valid = Rolling(map(torch.from_numpy, ground.valid()), size[0], dim=0)
        self._rows = np.empty((TILE, size[1]), np.uint8)
        self._filled = 0
        self._file = rasterio().open(
            path, "w", driver="GTiff", height=size[0], width=size[1], count=1, dtype="uint8",
            nodata=IGNORE if ground.gaps else None, tiled=True, blockxsize=TILE, blockysize=TILE,
            compress="DEFLATE", photometric="PALETTE", BIGTIFF="IF_SAFER", **ground.place,
        )
        self._file.update_tags(**ground.tags)
        self._file.write_colormap(1, dict(enumerate(map(tuple, full_palette(palette).tolist()))))

    def write(self, rows: np.ndarray) -> None:
        """Add rows (n, W) uint8 at the bottom."""
        if self._valid is not None:
            start = self._top + self._filled
            valid = self._valid.take(slice(start, start + len(rows))).numpy()
            rows = np.where(valid, rows, np.uint8(IGNORE))
        # By whole tiles: one that is written twice is compressed twice, and leaves a hole.
        while len(rows):
            part, rows = np.split(rows, [TILE - self._filled])
            self._rows[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            if self._filled == TILE:
                self._flush()

    def finish(self) -> None:
        """Write what is left, and see whether all of it can be read again."""
        self._flush()
        self.close()
        # On a full disk, what GDAL cannot write when it closes the file is merely missing.
        found = 0
        with rasterio().open(self._path, driver="GTiff") as file:
            for top in range(0, file.height, TILE):
                found = zlib.crc32(file.read(1, window=_window(file, top)), found)
        if found != self._sum:
            raise OSError(errno.EIO, "what was written cannot be read again")

    def close(self) -> None:
        """Let go of the file, finished or not."""
        self._file.close()

    def _flush(self) -> None:
        if self._filled:
            rows = self._rows[: self._filled]
            self._file.write(rows, 1, window=_window(self._file, self._top))
            self._sum = zlib.crc32(rows, self._sum)
            self._top, self._filled = self._top + self._filled, 0


def _window(file, top: int):
    """Of the rows of tiles that begin at ``top``."""
    return rasterio().windows.Window(0, top, file.width, min(TILE, file.height - top))
