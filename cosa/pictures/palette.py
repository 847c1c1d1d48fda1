"""Segmentation masks as palette PNG files and as overlays."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import numpy as np
from PIL import Image

from cosa.core.files import atomic
from cosa.core.parts import parts

Color = tuple[int, int, int]

_PIXELS_AT_ONCE = 2**20
"""Pixels of an overlay that are coloured at once: that takes some 10 bytes each."""


def voc_palette(n: int) -> list[Color]:
    """Return the first ``n`` (0..256) colours of PASCAL VOC, RGB in 0..255; 0 is black.

    Bits 0, 1 and 2 of every index octet go to red, green and blue, the lowest to the highest
    bit of the colour, so that neighbouring indices look different.
    """
    if not 0 <= n <= 256:
        raise ValueError(f"a palette holds 0 to 256 colours, not {n}")
    return [_voc_color(index) for index in range(n)]


def _voc_color(index: int) -> Color:
    red = green = blue = 0
    for bit in range(7, -1, -1):
        red |= (index & 1) << bit
        green |= (index >> 1 & 1) << bit
        blue |= (index >> 2 & 1) << bit
        index >>= 3
    return red, green, blue


def save_image(path: str | PathLike[str], image: Image.Image) -> None:
    """Write a PNG file atomically: whoever looks sees the old file, none, or the whole new one.

    The folder must exist. Raises OSError if it cannot be written; nothing is left behind then.
    """
    with atomic(path) as file:
        image.save(file, format="PNG")


def save_mask(path: str | PathLike[str], mask: np.ndarray, palette: Sequence[Color]) -> None:
    """Write class indices (H, W) uint8 as a palette PNG, atomically.

    Indices beyond ``palette`` (255 for ignored pixels) get their PASCAL VOC colour. Raises
    ValueError for another shape or type, OSError as ``save_image``.
    """
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise ValueError(f"a mask is (H, W) uint8, not {mask.shape} {mask.dtype}")
    image = Image.fromarray(mask)
    image.putpalette(full_palette(palette).tobytes())
    save_image(path, image)


def overlay(
    image: Image.Image, mask: np.ndarray, palette: Sequence[Color], alpha: float = 0.5
) -> Image.Image:
    """Blend the colours of a mask (H, W) uint8 over an RGB image of the same size.

    ``alpha`` in [0, 1] is the weight of the colour; background (index 0) stays as it is.
    Raises ValueError if the sizes differ.
    """
    if mask.shape != (image.height, image.width):
        raise ValueError(f"image {image.height, image.width} and mask {mask.shape} differ in size")
    result, colors = image.convert("RGB"), full_palette(palette)
    opacity = np.where(np.arange(256) > 0, round(alpha * 255), 0).astype(np.uint8)
    for rows in parts(image.height, _PIXELS_AT_ONCE // image.width):
        part = mask[rows]
        result.paste(Image.fromarray(colors[part]), (0, rows.start), Image.fromarray(opacity[part]))
    return result


def full_palette(palette: Sequence[Color]) -> np.ndarray:
    """Complete a palette to 256 colours with PASCAL VOC's; returns (256, 3) uint8."""
    return np.array([*palette, *voc_palette(256)[len(palette) :]], dtype=np.uint8)
