"""Rows of an image, resized as Pillow resizes the whole one, of which only some are held."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image

from cosa.core.parts import parts
from cosa.core.rolling import Rolling

_BITS = 22
"""Of the fixed-point numbers that Pillow weighs 8-bit values with."""

_AT_ONCE = 2**22
"""Values that are made at once, of 4 bytes each."""


def resized_rows(
    strips: Iterator[np.ndarray], size: tuple[int, int], target: tuple[int, int]
) -> Iterator[np.ndarray]:
    """An image's rows at another size: bit by bit those that Pillow's ``resize``, bilinear, yields
    of the whole image, first of its width, then of its height.

    Args:
        strips: parts of whole rows, (n, W, 3) uint8, from the top down.
        size: (height, width) of all of them.
        target: (height, width) of the result.

    Yields:
        Parts of whole rows of the result, (n, W', 3) uint8.
    """
    if size[1] != target[1]:
        strips = (_resized_across(strip, target[1]) for strip in strips)
    if size[0] == target[0]:
        yield from strips
        return
    first, weights = _weights(size[0], target[0])
    taps = np.arange(weights.shape[1])
    rows = Rolling(map(torch.from_numpy, strips), size[0], dim=0)
    for part in parts(target[0], _AT_ONCE // (3 * target[1])):
        index = np.minimum(first[part, None] + taps, size[0] - 1)
        held = rows.take(slice(int(index.min()), int(index.max()) + 1)).numpy()
        total = np.full((len(index), *held.shape[1:]), 1 << (_BITS - 1), np.int32)
        for tap in taps:
            total += held[index[:, tap] - index.min()] * weights[part, tap, None, None]
        yield np.clip(total >> _BITS, 0, 255).astype(np.uint8)


def _resized_across(strip: np.ndarray, width: int) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(strip))
    return np.array(image.resize((width, image.height), Image.Resampling.BILINEAR))


def _weights(length: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """The first row that goes into each new one (target,), and the weights of it and the next.

    These are (target, n) int32: of ``_BITS`` bits behind the point, 0 beyond the last row.
    """
    scale = length / target
    wide = max(scale, 1.0)
    centre = (np.arange(target) + 0.5) * scale
    first = np.maximum((centre - wide + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + wide + 0.5).astype(np.int64), length)
    taps = np.arange(2 * math.ceil(wide) + 1)
    distance = np.abs((taps + first[:, None] - centre[:, None] + 0.5) * (1 / wide))
    weights = np.where(taps < (end - first)[:, None], np.maximum(1 - distance, 0), 0)
    # Added up one by one, as Pillow does: sum() would group them.
    weights /= np.add.accumulate(weights, axis=1)[:, -1:]
    return first, (0.5 + weights * (1 << _BITS)).astype(np.int32)
