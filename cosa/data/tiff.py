"""TIFF files: what their tags say."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL.TiffImagePlugin import ImageFileDirectory_v2

from cosa.data.layout import Clause, Layout

# Of tags that they do not know or that are damaged, these packages tell the log, which would print
# it on stderr between the lines of the program.
for _name in ("PIL", "tifffile", "rasterio"):
    logging.getLogger(_name).addHandler(logging.NullHandler())

_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_PREMULTIPLIED, _STRAIGHT, _COREL = 1, 2, 999


@dataclass(frozen=True)
class Tags:
    """The tags that say what the values of a TIFF file are.

    Attributes:
        size: (width, height) as stored.
        samples: bands of a pixel.
        bits: of the first band.
        kind: of numbers: 1 whole, 2 with a sign, 3 fractions.
        photometric: 0 white is zero, 1 black is zero, 2 RGB, others.
        extra: what each band beyond the colours is: 1 opacity by which the colours are multiplied,
            2 opacity; other values, and bands of which it says nothing, are no opacity.
        separate: whether the bands lie in the file one behind the other.
        orientation: as of EXIF.
    """

    size: tuple[int, int]
    samples: int
    bits: int
    kind: int
    photometric: int
    extra: tuple[int, ...]
    separate: bool
    orientation: int

    @classmethod
    def of(cls, tags: Mapping[int, Any]) -> Tags:
        """From Pillow's tags.

        Raises:
            Exception: almost any, for damaged ones.
        """
        return cls(
            size=(int(tags[256]), int(tags[257])),
            samples=int(tags.get(277, 1)),
            bits=int(tags.get(258, (1,))[0]),
            kind=int(tags.get(339, (1,))[0]),
            photometric=int(tags.get(262, _WHITE_IS_ZERO)),
            extra=tuple(tags.get(338, ())),
            separate=tags.get(284, 1) == 2,
            orientation=tags.get(274, 1),
        )

    @property
    def opacity(self) -> int:
        """1 or 2 if the first band behind the colours is opacity, multiplied or not; else 0."""
        first = self.extra[0] if self.extra else 0
        return _STRAIGHT if first == _COREL else first * (first in (_PREMULTIPLIED, _STRAIGHT))

    @property
    def layout(self) -> Layout:
        """What the bands are.

        Raises:
            Clause: a clause about a file whose colours are none of grey, red, green and blue.
        """
        if self.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
            raise Clause("is neither grey nor RGB, and in a form that is not read: save it as "
                            "RGB")
        grey = self.photometric != _RGB
        colours = 1 if grey else 3
        if grey and not self.opacity and self.samples > 2:
            # Programs for maps say so of everything; three bands are those of a photograph.
            colours = 3 if self.samples == 3 else 0
        limits = (0.0, 2.0**self.bits - 1) if self.kind == 1 and self.bits <= 16 else None
        return Layout(
            self.samples, colours, limits, inverted=self.photometric == _WHITE_IS_ZERO,
            alpha=colours if self.opacity and self.samples > colours else None,
            premultiplied=self.opacity == _PREMULTIPLIED,
        )


def read_tags(file: BinaryIO) -> Tags | None:
    """The tags of the first image of a file; None if it is no TIFF file.

    Raises:
        Exception: almost any, for damaged ones.
    """
    file.seek(0)
    head = file.read(8)
    if head[:4] not in _MARKS:
        return None
    big = head[2:4] in (b"+\0", b"\0+")
    tags = ImageFileDirectory_v2(head + file.read(8) if big else head)
    file.seek(tags.next)
    tags.load(file)
    return Tags.of(tags)


def misread(tags: Tags, bands: int, by_number: bool) -> bool:
    """Whether Pillow, though it opens a TIFF file, yields other values or fewer bands.

    Args:
        bands: that it yields.
        by_number: whether bands are asked for by their numbers.
    """
    if tags.separate and tags.bits > 8 and tags.samples > 1:
        return True
    named = by_number and tags.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB)
    return named and (bands < tags.samples or tags.opacity == _PREMULTIPLIED)
