"""The outlines of COCO's annotations: polygons and run lengths, to pixels."""

from __future__ import annotations

from typing import Annotated, TypedDict

import numpy as np

from cosa.core.declared import Within
from cosa.data.masks.reader import Size

MOST = 2**31
"""Of a run, or of pixels in an image."""


class RunLengths(TypedDict):
    """Lengths of runs outside and inside by turns, column by column; text if compressed."""

    counts: list[Annotated[int, Within(0, MOST)]] | str


Outline = RunLengths | list[list[float]]
"""Run lengths, or polygons."""


def region(outline: Outline, size: Size) -> np.ndarray:
    """(H, W) bool of a COCO segmentation in an image of ``size``.

    Takes polygons ([[x, y, x, y, ...], ...] in pixels, (0, 0) the outer corner of the first pixel)
    and run lengths ({"counts": [off, on, off, ...]}, column by column, or a text of these). Raises
    ``ValueError`` for anything else.
    """
    check_outline(outline, size)
    width, height = size
    if isinstance(outline, dict):
        counts = run_lengths(outline["counts"])
        values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        return values.reshape(width, height).T
    inside = np.zeros((height, width), dtype=bool)
    for polygon in outline:
        inside |= fill_polygon(np.reshape(polygon, (-1, 2)), size)
    return inside


def check_outline(outline: Outline, size: Size) -> None:
    """Raise ``ValueError`` for what ``region`` cannot fill in an image of ``size``."""
    if isinstance(outline, dict):
        covered = int(run_lengths(outline["counts"]).sum())
        if covered != size[0] * size[1]:
            raise ValueError(f"run lengths cover {covered} of {size[0] * size[1]} pixels")
    elif any(len(polygon) % 2 for polygon in outline):
        raise ValueError("the segmentation is no list of polygons [x, y, x, y, ...]")


def area(outline: Outline) -> float:
    """Pixels within an outline, about: of polygons, the sum of their areas."""
    if isinstance(outline, dict):
        return float(run_lengths(outline["counts"])[1::2].sum())
    return sum((abs(enclosed(np.reshape(polygon, (-1, 2)))) for polygon in outline), 0.0)


def enclosed(ring: np.ndarray) -> float:
    """What a closed outline (K, 2) encloses: positive if it goes clockwise, as an image is seen."""
    x, y = ring.T.astype(np.float64)
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def run_lengths(counts: list[int] | str) -> np.ndarray:
    """(K,) int64 lengths of runs, decompressed if they are text.

    In the text each character holds 5 bits of a number, the lowest first, and whether more follow;
    from the fourth number on, it is the difference to the last but one. That pycocotools reads it
    likewise is tested; it does not look whether the runs fit the image. Raises ``ValueError`` if
    it is no such text.
    """
    if not isinstance(counts, str):
        return np.array(counts, dtype=np.int64)
    codes = np.array([ord(letter) for letter in counts], dtype=np.int64) - 48
    last = np.flatnonzero(codes & 32 == 0)
    if ((codes < 0) | (codes > 63)).any() or not last.size or last[-1] != len(codes) - 1:
        raise ValueError("the run lengths are no compressed text of COCO's tools")
    first = np.append(0, last[:-1] + 1)
    if (last - first).max() > 6:
        raise ValueError("the compressed run lengths hold a number that is no length")
    place = np.arange(len(codes)) - np.repeat(first, last - first + 1)
    values = np.add.reduceat((codes & 31) << 5 * place, first)
    negative = codes[last] & 16 != 0
    values -= np.where(negative, 1 << 5 * (last - first + 1), 0)
    for start in (1, 2):
        values[start::2] = np.cumsum(values[start::2])
    if ((values < 0) | (values > MOST)).any():
        raise ValueError("the compressed run lengths hold a number that is no length")
    return values


def compressed(counts: np.ndarray) -> str:
    """Lengths of runs (K,) int64 as the text that ``run_lengths`` reads."""
    values = counts.copy()
    values[3:] -= counts[1:-2]
    letters = []
    for value in values.tolist():
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            letters.append(chr(48 + bits + 32 * more))
    return "".join(letters)


def fill_polygon(corners: np.ndarray, size: Size) -> np.ndarray:
    """(H, W) bool: the pixels of an image of ``size`` whose centre is inside a polygon.

    ``corners`` is (K, 2) of (x, y). Drawing libraries add the outline as well, which makes
    small objects larger than they are.
    """
    width, height = size
    x, y = np.asarray(corners, dtype=np.float64).T
    x_end, y_end = np.roll(x, -1), np.roll(y, -1)
    centre = np.arange(height) + 0.5
    edge, row = np.nonzero((y[:, None] > centre) != (y_end[:, None] > centre))
    slope = (x_end[edge] - x[edge]) / (y_end[edge] - y[edge])
    crossing = x[edge] + (centre[row] - y[edge]) * slope
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
    crossings = np.zeros((height, width + 1), dtype=np.int32)
    np.add.at(crossings, (row, column), 1)
    return np.cumsum(crossings, axis=1)[:, :width] % 2 == 1
