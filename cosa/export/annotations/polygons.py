"""Outlines with fewer corners, and with their holes tied in; areas, boxes, run lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cosa.data.masks.outlines import Size, enclosed


def simplified(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """A closed outline with some of its corners left out, by Douglas and Peucker's method.

    Args:
        ring: (K, 2) corners (x, y), at least 3.
        tolerance: in pixels; no corner that is left out is farther from what is left. 0 leaves out
            none.

    Returns:
        (K', 2) of the same corners in the same order; all of them where fewer than three would be
        left, or no area.
    """
    if tolerance <= 0:
        return ring
    closed = np.concatenate([ring, ring[:1]]).astype(np.float64)
    kept = np.zeros(len(closed), dtype=bool)
    farthest = int(np.square(closed - closed[0]).sum(axis=1).argmax())
    kept[[0, farthest]] = True
    open_ = [(0, farthest), (farthest, len(ring))]
    while open_:
        start, end = open_.pop()
        if end - start > 1:
            distances = _distances(closed[start + 1 : end], closed[start], closed[end])
            place = int(distances.argmax())
            if distances[place] > tolerance:
                middle = start + 1 + place
                kept[middle] = True
                open_ += [(start, middle), (middle, end)]
    left = ring[kept[:-1]]
    return left if len(left) > 2 and enclosed(left) * enclosed(ring) > 0 else ring


def _distances(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(K,) distances of points (K, 2) from the line between two others, not beyond its ends."""
    along = end - start
    length = max(float(along @ along), 1e-9)
    share = np.clip((points - start) @ along / length, 0, 1)
    return np.hypot(*(points - start - share[:, None] * along).T)


def bridged(outer: np.ndarray, holes: Sequence[np.ndarray]) -> np.ndarray:
    """One closed outline of a part with holes, for formats that know no holes.

    From a corner near a hole the outline goes straight to it, around it, and the same way back, so
    that it encloses the very same points.

    Args:
        outer: (K, 2) corners of the outline, clockwise.
        holes: the same of the holes, counterclockwise.

    Returns:
        (K + sum of the holes' corners + 2 for each hole, 2)
    """
    whole = outer
    # From left to right: what lies to the left of a hole is a part of the outline already.
    for hole in sorted(holes, key=lambda ring: tuple(ring.min(axis=0))):
        first = int(np.lexsort((hole[:, 1], hole[:, 0]))[0])
        away = np.square(whole - hole[first]).sum(axis=1).astype(np.float64)
        away[whole[:, 0] > hole[first, 0]] = np.inf
        near = int(away.argmin())
        around = np.concatenate([hole[first:], hole[: first + 1]])
        whole = np.concatenate([whole[: near + 1], around, whole[near:]])
    return whole


def run_lengths_of(rings: Sequence[np.ndarray], size: Size) -> np.ndarray:
    """(R,) int64 lengths of runs outside and inside by turns, column by column, as COCO has them.

    Args:
        rings: outlines along the edges of the pixels, (K, 2) int corners each.
        size: (width, height) of the image.
    """
    width, height = size
    starts, ends = np.concatenate(rings), np.concatenate([np.roll(r, -1, axis=0) for r in rings])
    flat = starts[:, 1] == ends[:, 1]
    low = np.minimum(starts[flat, 0], ends[flat, 0]).astype(np.int64)
    columns = np.abs(ends[flat, 0] - starts[flat, 0])
    # Each column of a horizontal edge is a place where the inside begins or ends.
    within = np.arange(columns.sum()) - np.repeat(np.cumsum(columns) - columns, columns)
    places = (np.repeat(low, columns) + within) * height + np.repeat(starts[flat, 1], columns)
    places, times = np.unique(places, return_counts=True)
    places = places[(times % 2 == 1) & (places < width * height)]
    return np.diff(np.concatenate([[0], places, [width * height]]))
