"""Contact sheets: many images beside their masks, with a line of text below each pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cosa.core.text import NAME, shown
from cosa.pictures.legend import BAR, DARK, GAP, PALE, Item, Legend, text_font
from cosa.pictures.palette import Color, overlay

BOX = (240, 180)
"""(width, height) into which each picture is fitted."""
COLUMNS = 2
"""Pairs side by side."""
_PAIR = 2 * BOX[0] + GAP // 2


@dataclass(frozen=True)
class Entry:
    """An image and its mask, as small as they are shown."""

    name: str
    told: str
    """Right of the name."""
    image: Image.Image
    mask: np.ndarray
    """(H, W) uint8, as large as ``image``."""


def entry(name: str, told: str, image: Image.Image, mask: np.ndarray) -> Entry:
    """An image (RGB) and its mask (H, W) uint8 of the same size, fitted into ``BOX``."""
    factor = min(BOX[0] / image.width, BOX[1] / image.height)
    size = tuple(max(1, round(side * factor)) for side in image.size)
    small = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    labels = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
    return Entry(name, told, small, np.asarray(labels))


def contact_sheet(
    entries: Sequence[Entry], classes: Sequence[str], palette: Sequence[Color]
) -> Image.Image:
    """An RGB picture of all entries in their order, row by row, with a legend at the end.

    Args:
        entries: at least one.
        classes: names of the C foreground classes.
        palette: C + 1 colours, the background first.
    """
    rows = [entries[first : first + COLUMNS] for first in range(0, len(entries), COLUMNS)]
    heights = [max(item.image.height for item in row) + BAR + GAP for row in rows]
    width = GAP + min(COLUMNS, len(entries)) * (_PAIR + 2 * GAP) - GAP
    there = {label for item in entries for label in np.unique(item.mask).tolist()}
    legend = Legend([Item(palette[label], shown(classes[label - 1], NAME))
                     for label in sorted(there - {0})], width)
    sheet = Image.new("RGB", (width, GAP + sum(heights) + legend.height), "white")
    draw, font, top = ImageDraw.Draw(sheet), text_font(), GAP
    for row, height in zip(rows, heights, strict=True):
        for column, item in enumerate(row):
            left, below = GAP + column * (_PAIR + 2 * GAP), top + height - GAP - BAR
            above = below - item.image.height
            sheet.paste(item.image, (left, above))
            covered = overlay(item.image, item.mask, palette)
            sheet.paste(covered, (left + item.image.width + GAP // 2, above))
            middle = below + BAR / 2
            draw.text((left + _PAIR, middle), item.told, PALE, font, anchor="rm")
            room = _PAIR - font.getlength(item.told) - GAP
            draw.text((left, middle), ending(item.name, room, font), DARK, font, anchor="lm")
        top += height
    legend.draw(draw, top)
    return sheet


def ending(name: str, room: float, font: ImageFont.FreeTypeFont) -> str:
    """As much of the end of a name, in which files differ, as has room in so many pixels."""
    text = shown(name, None)
    if font.getlength(text) <= room:
        return text
    kept = text[-NAME:]
    while kept and font.getlength(f"...{kept}") > room:
        kept = kept[1:]
    return f"...{kept}"
