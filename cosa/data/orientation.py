"""How an image lies in its file: the one place that decides its upright size and its turn."""

from __future__ import annotations

import io
import os
import zlib
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image
from PIL.Image import Transpose
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

Size = tuple[int, int]
"""(width, height)"""

_TAG = 0x0112
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_METADATA = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")


@dataclass(frozen=True)
class Turn:
    """What makes stored pixels upright."""

    method: Transpose | None = None
    """Of Pillow; None where nothing is to be done."""
    sideways: bool = False
    """Whether stored rows are upright columns."""
    mirrored_across: bool = False
    """Whether, in the upright image, the order from left to right is reversed."""
    mirrored_down: bool = False
    """Whether, in the upright image, the order from top to bottom is reversed."""

    def size(self, stored: Size) -> Size:
        """The upright (width, height) of stored pixels of this size."""
        return stored[::-1] if self.sideways else stored

    def applied(self, image: Image.Image) -> Image.Image:
        """The image turned; itself where nothing is to be done."""
        return image if self.method is None else image.transpose(self.method)

    def turned(self, pixels: np.ndarray) -> np.ndarray:
        """The same of an array (h, w, ...)."""
        if self.sideways:  # what is left to do is as with rows that stay rows
            pixels = pixels.swapaxes(0, 1)
        across, down = (slice(None, None, -1 if mirrored else 1)
                        for mirrored in (self.mirrored_across, self.mirrored_down))
        return pixels[down, across]

    def corner(self, top: int, bottom: int, height: int) -> tuple[int, int]:
        """(x, y) of the upright corner of the stored rows ``top``..``bottom`` of ``height``."""
        mirrored = self.mirrored_across if self.sideways else self.mirrored_down
        start = height - bottom if mirrored else top
        return (start, 0) if self.sideways else (0, start)


AS_STORED = Turn()
TURNS = {
    2: Turn(Transpose.FLIP_LEFT_RIGHT, mirrored_across=True),
    3: Turn(Transpose.ROTATE_180, mirrored_across=True, mirrored_down=True),
    4: Turn(Transpose.FLIP_TOP_BOTTOM, mirrored_down=True),
    5: Turn(Transpose.TRANSPOSE, sideways=True),
    6: Turn(Transpose.ROTATE_270, sideways=True, mirrored_across=True),
    7: Turn(Transpose.TRANSVERSE, sideways=True, mirrored_across=True, mirrored_down=True),
    8: Turn(Transpose.ROTATE_90, sideways=True, mirrored_down=True),
}
"""By EXIF orientation; 1, and what is no orientation, leaves an image as it is stored."""


def upright(picture: ImageFile, file: BinaryIO) -> tuple[Size, Turn]:
    """The size that a picture has when it is upright, and what is to be done for it.

    Nothing is decoded: EXIF data and, where these say nothing, XMP data tell. Those of a PNG file
    may lie behind its pixels.

    Args:
        picture: opened and not yet loaded.
        file: the buffered file that it was opened from; its position is left as it is.

    Returns:
        (width, height), and the turn that the picture needs once it is loaded.

    Raises:
        Exception: almost any, of Pillow, for damaged metadata.
    """
    if isinstance(picture, TiffImageFile):  # Pillow turns these itself, when it loads them
        stored = picture.tag_v2[256], picture.tag_v2[257]
        return TURNS.get(picture.getexif().get(_TAG), AS_STORED).size(stored), AS_STORED
    if isinstance(picture, PngImageFile):
        exif = _png_exif(picture, file)
    else:
        exif = picture.getexif()
    turn = TURNS.get(exif.get(_TAG), AS_STORED)
    return turn.size(picture.size), turn


def _png_exif(picture: PngImageFile, file: BinaryIO) -> Image.Exif:
    """The EXIF data of a PNG file, which Pillow itself would decode to find them."""
    carrier = Image.new("1", (1, 1))
    carrier.info = dict(picture.info)
    late = _behind_the_pixels(file)
    if late:
        # Pillow reads what lies before the pixels, so an image without any is made of it.
        head = (1).to_bytes(4, "big") * 2 + bytes((8, 0, 0, 0, 0))
        chunks = [(b"IHDR", head), *late, (b"IDAT", b""), (b"IEND", b"")]
        content = _PNG_SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as found:
            carrier.info.update(found.info)
    return carrier.getexif()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return b"".join((
        len(data).to_bytes(4, "big"), kind, data, zlib.crc32(kind + data).to_bytes(4, "big")
    ))


def _behind_the_pixels(file: BinaryIO) -> list[tuple[bytes, bytes]]:
    """Kind and content of a PNG file's chunks of metadata that follow its pixels."""
    # Unbuffered: the buffer would fill itself with pixels at each chunk.
    raw, before = file.raw, file.raw.tell()
    end = os.fstat(file.fileno()).st_size
    found, pixels, at = [], False, len(_PNG_SIGNATURE)
    while at + 12 <= end:
        raw.seek(at)
        head = raw.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        at += 12 + length
        if kind == b"IEND" or at > end:
            break
        if pixels and kind in _PNG_METADATA:
            found.append((kind, raw.read(length)))
        pixels = pixels or kind == b"IDAT"
    raw.seek(before)
    return found
