"""Legends: squares of colour with names, in as many rows as they need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import ImageDraw, ImageFont

from cosa.pictures.palette import Color

GAP = 8
"""Pixels around pictures and legends."""
TEXT = 13
"""Size of the font."""
BAR = 24
"""Height of a row of text."""
DARK, PALE = (40, 40, 40), (130, 130, 130)
"""Inks."""
_SQUARE = 17  # with the space after it


def text_font() -> ImageFont.FreeTypeFont:
    """The font of all pictures, which Pillow brings."""
    return ImageFont.load_default(TEXT)


@dataclass(frozen=True)
class Item:
    """One entry."""

    color: Color | None
    """Of the square before the text; None: there is none."""
    text: str
    ink: Color = DARK


class Legend:
    """Items in rows that are at most ``width`` pixels wide, unless a single one is wider."""

    def __init__(self, items: Sequence[Item], width: int) -> None:
        self.font, self._placed = text_font(), []
        x, row = GAP, 0
        for item in items:
            needed = math.ceil(self.font.getlength(item.text)) + _SQUARE * (item.color is not None)
            if x > GAP and x + needed > width - GAP:
                x, row = GAP, row + 1
            self._placed.append((x, row, item))
            x += needed + 16
        self.height = BAR * (1 + row)

    def draw(self, draw: ImageDraw.ImageDraw, top: int) -> None:
        """Draw it below the line ``top`` of a picture."""
        for x, row, item in self._placed:
            y = top + BAR * row + BAR // 2
            if item.color is not None:
                draw.rectangle((x, y - 6, x + 11, y + 5), fill=item.color)
                x += _SQUARE
            draw.text((x, y), item.text, item.ink, self.font, anchor="lm")
