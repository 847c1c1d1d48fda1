"""Pixels of any of Pillow's modes to 8-bit RGB, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from PIL import Image

from cosa.core.parts import parts
from cosa.data.orientation import AS_STORED, Turn

STRIP = 2**20
"""Pixels that are converted at once: the steps on the way take up to 20 bytes each."""


def to_rgb(image: Image.Image, turn: Turn = AS_STORED) -> Image.Image:
    """A loaded image of any Pillow mode as upright 8-bit RGB; itself where it is that already.

    Beside the image and the result, which takes 4 bytes a pixel, the memory that this needs does
    not grow with the image. See ``cosa.data.images.read_image`` for what becomes of the values.
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return turn.applied(image)
    convert = _conversion(image)
    result = Image.new("RGB", turn.size(image.size))
    for top, strip in _strips(image):
        corner = turn.corner(top, top + strip.height, image.height)
        result.paste(turn.applied(convert(strip)), corner)
    return result


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The image in parts of whole rows, each with the number of its first row."""
    for rows in parts(image.height, STRIP // image.width):
        whole = rows.stop - rows.start == image.height
        yield rows.start, image if whole else image.crop((0, rows.start, image.width, rows.stop))


def _conversion(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """What makes RGB of each part of an image."""
    if image.mode.startswith("I;16"):
        return partial(_grey, scale=_scale_16_bits)
    if image.mode in ("I", "F"):
        return partial(_grey, scale=partial(_scale_wide, full_range=_full_range(image)))
    if image.has_transparency_data:
        return _on_white
    return lambda part: part.convert("RGB")


def _on_white(part: Image.Image) -> Image.Image:
    part = part.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", part.size, "white"), part).convert("RGB")


def _grey(part: Image.Image, scale: Callable[[np.ndarray], np.ndarray]) -> Image.Image:
    return Image.fromarray(scale(np.asarray(part))).convert("RGB")


def _scale_16_bits(values: np.ndarray) -> np.ndarray:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _scale_wide(values: np.ndarray, full_range: tuple[float, float]) -> np.ndarray:
    low, high = full_range
    span = max(high - low, np.finfo(np.float64).tiny)
    return np.rint((_finite(values) - low) / span * 255).astype(np.uint8)


def _full_range(image: Image.Image) -> tuple[float, float]:
    """What becomes black and white in an image of mode "I" or "F"."""
    low, high = np.inf, -np.inf
    for _, strip in _strips(image):
        values = _finite(np.asarray(strip))
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    if low >= 0 and high <= 65535:
        ranges = (1, 255, 65535) if image.mode == "F" else (255, 65535)
        return 0.0, next(full for full in ranges if high <= full)
    return low, high


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, 0).astype(np.float64)
