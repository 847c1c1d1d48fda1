"""Image files made by hand, byte by byte, and what they show."""

from __future__ import annotations

import struct
import zlib

import numpy as np

ORIENTATION = 0x0112

STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.T,
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].T,
    8: lambda upright: np.rot90(upright, -1),
}
"""EXIF orientation -> what a file holds of upright grey pixels (H, W)."""


def tiff(stored: np.ndarray, orientation: int = 1, order: str = "<") -> bytes:
    """An uncompressed grey TIFF file of one strip; ``stored`` (h, w) is uint8 or uint16."""
    height, width = stored.shape
    data = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
    short, long = 3, 4
    tags = [
        (256, long, width), (257, long, height), (258, short, 8 * stored.itemsize),
        (259, short, 1), (262, short, 1), (273, long, 8), (ORIENTATION, short, orientation),
        (277, short, 1), (278, long, height), (279, long, len(data)),
    ]
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HL", 42, 8 + len(data))
    entries = b"".join(
        struct.pack(order + ("HHLHH" if kind == short else "HHLL"), tag, kind, 1, value,
                    *[0] * (kind == short))
        for tag, kind, value in tags
    )
    return head + data + struct.pack(order + "H", len(tags)) + entries + bytes(4)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    check = zlib.crc32(kind + data)
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", check)


def spliced(png: bytes, *chunks: bytes, late: bool) -> bytes:
    """A PNG file with more chunks, before its pixels or behind them."""
    at = png.rindex(b"IEND") - 4 if late else png.index(b"IDAT") - 4
    return png[:at] + b"".join(chunks) + png[at:]


def exif(orientation: int, kind: int = 3, count: int = 1) -> bytes:
    """EXIF data without the marker, whose orientation has this TIFF type; 2 makes it text."""
    value = f"{orientation}\0".encode() if kind == 2 else struct.pack(
        "<L" if kind == 4 else "<H", orientation)
    entry = struct.pack("<HHL", ORIENTATION, kind, count) + value.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<LH", 8, 1) + entry + bytes(4)


def xmp(orientation: int) -> bytes:
    """XMP data that tell the orientation."""
    return (b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/>'
            b"</x:xmpmeta>" % orientation)


def itxt(text: bytes) -> bytes:
    """A PNG chunk of XMP data."""
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text)
