"""The values of TIFF files that Pillow does not read, or not all of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from cosa.data.layout import Clause, rows_at_once
from cosa.data.samples import RawSamples
from cosa.data.tiff import Tags

INSTALL = "pip install tifffile imagecodecs"
"""What brings the packages that read them."""


class TiffSamples:
    """The values of a TIFF file's first image, as stored, by the package tifffile.

    Args:
        file: opened; its position moves.
        tags: of it.

    Raises:
        Clause: a clause about a file that needs a package that is not installed.
        Exception: almost any, of tifffile, for damaged files.
    """

    def __init__(self, file: BinaryIO, tags: Tags) -> None:
        try:
            import tifffile
        except ImportError as error:
            raise Clause(
                f"has {tags.samples} bands of {tags.bits} bits in a form that Pillow does not "
                f"read: {INSTALL}"
            ) from error
        self.size, self.layout = tags.size, tags.layout
        self._file = file
        self._page = tifffile.TiffFile(file, name="image.tif", offset=0).pages.first
        page = self._page
        if (page.imagewidth, page.imagelength, page.samplesperpixel) != (*self.size, tags.samples):
            raise ValueError("its tags contradict each other")
        if page.dtype is None or page.dtype.kind not in "uif" or page.imagedepth != 1:
            raise ValueError("its values are no whole numbers or fractions of a picture")

    def strips(self, bands: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        page, count = self._page, self.layout.bands
        if page.is_final:  # often a single strip, of all rows
            dtype = page.dtype.newbyteorder(page.parent.byteorder)
            yield from RawSamples(
                self._file, page.dataoffsets[0], dtype, self.size, self.layout,
                separate=page.planarconfig == 2 and count > 1,
            ).strips(bands)
            return
        width, height = self.size
        tall = min(page.tilelength if page.is_tiled else page.rowsperstrip, height)
        wide = page.tilewidth if page.is_tiled else width
        across, down = -(-width // wide), -(-height // tall)
        separate = page.planarconfig == 2 and count > 1
        planes = list(bands) if separate else [0]
        if len(page.dataoffsets) < across * down * (count if separate else 1):
            raise ValueError("parts of it are missing")
        for row in range(down):
            top = row * tall
            values = np.zeros((min(tall, height - top), width, len(bands)), page.dtype)
            for place, plane in enumerate(planes):
                for column in range(across):
                    part = self._decoded((plane * down + row) * across + column)
                    if part is None:  # left out, as programs for maps do where there is nothing
                        continue
                    left = column * wide
                    part = part[: len(values), : width - left]
                    into = values[: len(part), left : left + part.shape[1]]
                    if separate:
                        into[..., place] = part[..., 0]
                    else:
                        into[...] = part[..., list(bands)]
            for rows in rows_at_once(width, len(values)):
                yield top + rows.start, values[rows]

    def _decoded(self, index: int) -> np.ndarray | None:
        """(h, w, bands) values of a strip or tile."""
        page = self._page
        if not page.databytecounts[index]:
            return None
        self._file.seek(page.dataoffsets[index])
        content = self._file.read(page.databytecounts[index])
        try:
            part, _, shape = page.decode(content, index)
        except (ValueError, NotImplementedError) as error:
            if "imagecodecs" in str(error):
                raise Clause(f"is compressed or packed in a form that needs a package: {INSTALL}"
                                ) from error
            raise
        return None if part is None else part[0, : shape[1], : shape[2]]
