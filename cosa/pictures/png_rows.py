"""PNG files whose rows come from the top down: none of them need be held."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from cosa.pictures.palette import Color, full_palette

_GREY, _PALETTE = 0, 3
_CHUNK = 2**20
"""Bytes of compressed pixels that are gathered before they are written."""


class PngRows:
    """Writes a PNG file of one byte a pixel.

    Args:
        file: open for writing; it is not closed.
        size: (height, width).
        palette: colours of the indices; None: grey levels.
    """

    def __init__(
        self, file: BinaryIO, size: tuple[int, int], palette: Sequence[Color] | None = None
    ) -> None:
        self._file, self._packer, self._packed = file, zlib.compressobj(), bytearray()
        file.write(b"\x89PNG\r\n\x1a\n")
        kind = _GREY if palette is None else _PALETTE
        self._chunk(b"IHDR", struct.pack(">LLBBBBB", size[1], size[0], 8, kind, 0, 0, 0))
        if palette is not None:
            self._chunk(b"PLTE", full_palette(palette).tobytes())

    def write(self, rows: np.ndarray) -> None:
        """Add rows (n, W) uint8 at the bottom."""
        # Each begins with the number of its filter, which is none.
        self._packed += self._packer.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())
        if len(self._packed) >= _CHUNK:
            self._flush()

    def finish(self) -> None:
        """Write what is missing after the last row."""
        self._packed += self._packer.flush()
        self._flush()
        self._chunk(b"IEND", b"")

    def _flush(self) -> None:
        self._chunk(b"IDAT", bytes(self._packed))
        self._packed.clear()

    def _chunk(self, kind: bytes, content: bytes) -> None:
        self._file.write(struct.pack(">L", len(content)) + kind + content
                         + struct.pack(">L", zlib.crc32(kind + content)))
