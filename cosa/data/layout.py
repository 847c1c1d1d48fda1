"""What the bands of an image file are: which are seen, and which of their values is white."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cosa.core.errors import UserError
from cosa.core.parts import parts

STRIP = 2**20
"""Pixels that are converted at once: the steps on the way take up to 20 bytes each."""

Range = tuple[float, float]
EIGHT, SIXTEEN = (0.0, 255.0), (0.0, 65535.0)


class Clause(UserError):
    """What is wrong with a file, as a clause that its name begins."""


@dataclass(frozen=True)
class Layout:
    """What the bands of a file are.

    Attributes:
        bands: how many there are.
        colours: how many of them, the first ones, are to be seen: 1 (grey) or 3 (red, green,
            blue); 0 if the file does not tell.
        limits: the values of black and white, or of white and black if ``inverted``; None if the
            file does not tell, as of fractions.
        alpha: the index of the band of opacity.
        premultiplied: whether colours are multiplied by it already.
        key: the values of the one colour that is transparent.
        stretched: what Pillow makes of the largest value, where it stretches them.
        hidden: whether there are bands beside the colours that are not to be seen, though Pillow
            takes them for opacity.
    """

    bands: int
    colours: int
    limits: Range | None
    inverted: bool = False
    alpha: int | None = None
    premultiplied: bool = False
    key: tuple[int, ...] | None = None
    stretched: int | None = None
    hidden: bool = False

    def chosen(self, bands: Sequence[int] | None) -> tuple[int, ...]:
        """Indices of the grey band, or of red, green and blue, of which ``bands`` has the numbers.

        Raises:
            Clause: a clause about the file: it has no such bands, or does not tell.
        """
        if bands is None and self.colours:
            return tuple(range(self.colours))
        count = "1 band" if self.bands == 1 else f"{self.bands} bands"
        if bands is None:
            raise Clause(f"has {count} and does not say which are red, green and blue: name "
                            "three, data.bands=[4,3,2] or, of infer.py, --bands 4 3 2")
        if max(bands) > self.bands:
            raise Clause(f"has {count}, and no number {max(bands)} as data.bands or --bands asks "
                            "for: name others, or leave it out")
        return tuple(number - 1 for number in bands)


def rows_at_once(width: int, height: int) -> Iterator[slice]:
    """The rows of an image, as many at a time as are converted at once."""
    return parts(height, STRIP // width)
