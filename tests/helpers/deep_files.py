"""Image files of more than 8 bits, or of other bands than RGB, written byte by byte."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from tests.helpers.image_files import chunk

PNG_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}
"""Bands -> what a PNG file calls them."""


def png16(values: np.ndarray, *chunks: bytes) -> bytes:
    """A PNG file of (h, w, bands) uint16, of 1 (grey) to 4 (RGB and opacity) bands."""
    height, width, bands = values.shape
    head = struct.pack(">LLBBBBB", width, height, 16, PNG_COLOURS[bands], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"".join((b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", head), *chunks,
                     chunk(b"IDAT", zlib.compress(rows, 1)), chunk(b"IEND", b"")))


def pnm(values: np.ndarray, largest: int, plain: bool = False) -> bytes:
    """A PGM or PPM file of (h, w, bands), 1 or 3 bands of up to ``largest``."""
    height, width, bands = values.shape
    kind = {1: 2, 3: 3}[bands] + 3 * (not plain)
    head = f"P{kind} {width} {height} {largest}\n".encode()
    if plain:
        return head + " ".join(map(str, values.ravel())).encode() + b"\n"
    return head + values.astype(">u2" if largest > 255 else "u1").tobytes()


def tiff(
    values: np.ndarray,
    photometric: int = 1,
    extra: tuple[int, ...] = (),
    orientation: int = 1,
    order: str = "<",
    separate: bool = False,
    rows: int | None = None,
    deflated: bool = False,
    bits: int | None = None,
) -> bytes:
    """A TIFF file of (h, w, bands) of any type of numbers.

    ``photometric``: 0 white is zero, 1 black is zero, 2 RGB. ``extra``: what the bands beyond the
    colours are. ``separate``: the bands lie one behind the other. ``rows``: of a strip.
    ``bits``: 12, of uint16 in an even number of columns: two values take three bytes.
    """
    height, width, bands = values.shape
    rows = rows or height
    planes = [values[..., band : band + 1] for band in range(bands)] if separate else [values]
    kind = values.dtype.newbyteorder(order)
    strips = [plane[top : top + rows].astype(kind).tobytes()
              for plane in planes for top in range(0, height, rows)]
    if bits == 12:
        first, second = values[:, ::2], values[:, 1::2]
        three = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1)
        strips = [three.astype(np.uint8).tobytes()]
    strips = [zlib.compress(strip) if deflated else strip for strip in strips]
    offsets = np.cumsum([8, *map(len, strips)]).tolist()
    short, long = ("H", 3), ("L", 4)
    tags = [
        (256, long, (width,)), (257, long, (height,)),
        (258, short, (bits or 8 * kind.itemsize,) * bands),
        (259, short, (8 if deflated else 1,)), (262, short, (photometric,)),
        (273, long, offsets[:-1]), (274, short, (orientation,)), (277, short, (bands,)),
        (278, long, (rows,)), (279, long, list(map(len, strips))),
        (284, short, (2 if separate else 1,)), (338, short, extra),
        (339, short, ({"u": 1, "i": 2, "f": 3}[kind.kind],) * bands),
    ]
    tags = [tag for tag in tags if tag[2]]
    behind = offsets[-1] + 2 + 12 * len(tags) + 4
    entries, tail = b"", b""
    for number, (letter, code), held in tags:
        content = struct.pack(f"{order}{len(held)}{letter}", *held)
        if len(content) > 4:
            place = struct.pack(order + "L", behind + len(tail))
            tail += content + b"\0" * (len(content) % 2)
        else:
            place = content.ljust(4, b"\0")
        entries += struct.pack(order + "HHL", number, code, len(held)) + place
    mark = (b"II" if order == "<" else b"MM") + struct.pack(order + "HL", 42, offsets[-1])
    return mark + b"".join(strips) + struct.pack(order + "H", len(tags)) + entries + bytes(4) + tail
