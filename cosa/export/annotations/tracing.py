"""From a mask to its connected parts and their outlines, along the edges of the pixels."""

from __future__ import annotations

import numpy as np

_AHEAD = ((0, 1), (1, 0), (0, -1), (-1, 0))
"""Steps (rows, columns) to the east, south, west and north: to the right of each is the next."""

_CORNER = ((0, 0), (0, 1), (1, 1), (1, 0))
"""Where the edge of a pixel that leads there begins, from the pixel's first corner."""


def connected(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The parts of a mask: pixels of one class that are neighbours in a row or a column.

    Pixels that touch at a corner only are of different parts.

    Args:
        mask: (H, W) uint8, 0 background.

    Returns:
        The number of each pixel's part (H, W) int32, from 1 in the order of their first pixels, 0
        for the background; where the rows' runs of pixels of one value begin (R,) int64, in the
        flattened mask; and the runs' parts (R,) int32.
    """
    begins = np.ones(mask.shape, dtype=bool)
    np.not_equal(mask[:, 1:], mask[:, :-1], out=begins[:, 1:])
    starts = np.flatnonzero(begins)
    runs = np.cumsum(begins, dtype=np.int32).reshape(mask.shape) - 1
    # Where neither run begins, the pixels to the left have joined them already.
    meet = (mask[1:] == mask[:-1]) & (begins[1:] | begins[:-1])
    roots = _joined(len(starts), runs[:-1][meet], runs[1:][meet])
    inside = mask.ravel()[starts] != 0
    first = inside & (roots == np.arange(len(roots)))
    parts = np.where(inside, np.cumsum(first, dtype=np.int32)[roots], np.int32(0))
    return parts[runs], starts, parts


def _joined(count: int, above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """(count,) the least of the numbers that each is joined to, by the pairs above and below."""
    roots = np.arange(count)
    while True:
        one, other = roots[above], roots[below]
        if (one == other).all():
            return roots
        np.minimum.at(roots, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(further := roots[roots], roots):
            roots = further


def outlines(parts: np.ndarray) -> list[list[np.ndarray]]:
    """The outlines of parts that are connected as ``connected`` says.

    Args:
        parts: (H, W) int32, 0 background, the others numbered from 1 without a gap.

    Returns:
        For each part its closed outlines, first the outer one, then its holes: (K, 2) int32
        corners (x, y), (0, 0) the outer corner of the first pixel; each corner turns. The part is
        on the right: outer outlines go clockwise, as an image is seen, holes the other way. Where
        a part touches itself at a corner, an outline passes that twice.
    """
    edges, following = _edges(parts)
    if not len(edges):
        return []
    order, lengths = _closed(following)
    pixels, directions = np.divmod(edges, 4)
    before = np.empty_like(following)
    before[following] = np.arange(len(edges))
    turning = (directions != directions[before])[order]
    corners = order[turning]
    rows, columns = np.divmod(pixels[corners], parts.shape[1] + 2)
    begins = np.array(_CORNER)[directions[corners]]
    points = np.stack([columns - 1 + begins[:, 1], rows - 1 + begins[:, 0]], axis=1)
    ends = np.cumsum(lengths)
    rings = np.split(points.astype(np.int32), np.cumsum(turning)[ends[:-1] - 1])
    rows, columns = np.divmod(pixels[order[ends - lengths]], parts.shape[1] + 2)
    found: list[list[np.ndarray]] = [[] for _ in range(int(parts.max(initial=0)))]
    for part, ring in zip(parts[rows - 1, columns - 1].tolist(), rings, strict=True):
        found[part - 1].append(ring)
    return found


def _closed(following: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The edges in the order in which they follow one another, and how many are in each circle.

    The first edge of each circle is its least, and circles come in the order of these.
    """
    successors, left = following.tolist(), bytearray(b"\1") * len(following)
    order, lengths = [], []
    for first in range(len(successors)):
        if left[first]:
            edge, before = first, len(order)
            while left[edge]:
                left[edge] = 0
                order.append(edge)
                edge = successors[edge]
            lengths.append(len(order) - before)
    return np.array(order, dtype=np.int64), np.array(lengths, dtype=np.int64)


def _edges(parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The edges of pixels that part them from another part, and the place of the one that follows.

    An edge is 4 * its pixel + its direction, by which the pixel is on the right; pixels count from
    the corner of a frame of one pixel around the image. Edges are sorted: the first one of a part
    is of its outer outline.
    """
    height, width = parts.shape
    padded = np.pad(parts, 1)
    edges = []
    for direction in range(4):
        rows, columns = _AHEAD[direction - 1]  # to the left
        other = padded[1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]
        row, column = np.nonzero((parts != 0) & (parts != other))
        edges.append(4 * ((row + 1) * (width + 2) + column + 1) + direction)
    found = np.sort(np.concatenate(edges))
    pixels, directions = np.divmod(found, 4)
    flat, steps = padded.ravel(), np.array([r * (width + 2) + c for r, c in _AHEAD])
    ahead = pixels + steps[directions]
    beside = ahead + steps[directions - 1]
    onward = flat[ahead] == flat[pixels]
    turned = onward & (flat[beside] == flat[pixels])
    # To the right around the pixel itself, straight on, or to the left around the third pixel.
    following = np.where(turned, beside, np.where(onward, ahead, pixels))
    directions = (directions + 1 - onward.astype(np.int64) - turned) % 4
    return found, np.searchsorted(found, 4 * following + directions)
