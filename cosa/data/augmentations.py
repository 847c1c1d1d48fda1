"""Colour operations of the training views: the Gaussian blur and those of the strong view."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance, ImageOps


def blurred(image: Image.Image, deviation: float) -> Image.Image:
    """Gaussian blur of an RGB image; its borders are continued by their own colours.

    In fixed point, with weights in steps of 1/256: faster than Pillow's six passes
    (``python -m cosa.benchmark loader`` times both), closer to the exact convolution than these,
    and the same bits on every machine.

    Args:
        deviation: of the Gaussian, in pixels, above 0.
    """
    weights = _gaussian_weights(deviation)
    radius = len(weights) - 1
    if radius == 0:
        return image
    width, height = image.size
    pixels = np.pad(np.asarray(image), ((radius, radius), (radius, radius), (0, 0)), mode="edge")
    # In rows of bytes a step to the right is three places.
    lines = pixels.reshape(height + 2 * radius, -1).astype(np.uint16)
    lines = _convolved([lines[i : i + height] for i in range(2 * radius + 1)], weights)
    lines = _convolved(
        [lines[:, 3 * i : 3 * (i + width)] for i in range(2 * radius + 1)], weights
    )
    return Image.fromarray(lines.astype(np.uint8).reshape(height, width, 3))


def _gaussian_weights(deviation: float) -> list[np.uint16]:
    """From the middle outwards, those of one side, as parts of 256 that sum to it; no zeros."""
    offsets = np.arange(int(4 * deviation) + 2)
    weights = np.exp(-0.5 * (offsets / deviation) ** 2)
    weights = np.rint(256 * weights / (weights[0] + 2 * weights[1:].sum())).astype(int)
    weights[0] = 256 - 2 * weights[1:].sum()
    return [np.uint16(weight) for weight in weights if weight > 0]


def _convolved(shifted: list[np.ndarray], weights: list[np.uint16]) -> np.ndarray:
    """Weighted mean of an odd number of shifted copies of 8-bit values, as uint16."""
    radius = len(weights) - 1
    total = shifted[radius] * weights[0]
    pair = np.empty_like(total)
    for distance in range(1, radius + 1):
        np.add(shifted[radius - distance], shifted[radius + distance], out=pair)
        pair *= weights[distance]
        total += pair
    total += np.uint16(128)
    total >>= np.uint16(8)
    return total


def strong_operations() -> tuple[str, ...]:
    """Names of the strong view's operations, each drawn with the same probability."""
    return tuple(_STRONG)


def apply_strong(image: Image.Image, operation: str, magnitude: float) -> Image.Image:
    """Apply one operation of ``strong_operations`` at a ``magnitude`` in [0, 1].

    Ranges are those of RandAugment: colour, contrast, brightness and sharpness factors 0.1..1.9
    (1 changes nothing), solarize threshold 256..0, posterize 8..4 bits; identity, autocontrast
    and equalize have no magnitude. The result has the size and mode of ``image``.
    """
    return _STRONG[operation](image, magnitude)


def _factor(magnitude: float) -> float:
    return 0.1 + 1.8 * magnitude


_STRONG = {
    "identity": lambda image, magnitude: image,
    "autocontrast": lambda image, magnitude: ImageOps.autocontrast(image),
    "equalize": lambda image, magnitude: ImageOps.equalize(image),
    "solarize": lambda image, magnitude: ImageOps.solarize(image, round(256 * (1 - magnitude))),
    "color": lambda image, magnitude: ImageEnhance.Color(image).enhance(_factor(magnitude)),
    "contrast": lambda image, magnitude: ImageEnhance.Contrast(image).enhance(_factor(magnitude)),
    "brightness": lambda image, magnitude: ImageEnhance.Brightness(image).enhance(
        _factor(magnitude)
    ),
    "sharpness": lambda image, magnitude: ImageEnhance.Sharpness(image).enhance(_factor(magnitude)),
    "posterize": lambda image, magnitude: ImageOps.posterize(image, 8 - round(4 * magnitude)),
}
