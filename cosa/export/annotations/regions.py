"""Regions: the connected parts of a mask, each with its class, its score and its outlines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cosa.data.masks.outlines import Size, enclosed
from cosa.export.annotations.polygons import bridged, simplified
from cosa.export.annotations.tracing import connected, outlines


@dataclass(frozen=True)
class Region:
    """A connected part of what a mask shows of a class; see ``tracing`` for what is connected."""

    label: int
    """From 1: the class."""
    score: float
    """Mean probability of the class over the region, in [0, 1]."""
    rings: list[np.ndarray]
    """The outer outline and those of the holes, as ``tracing.outlines`` returns them."""

    @cached_property
    def area(self) -> int:
        """In pixels."""
        return round(sum(map(enclosed, self.rings)))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x, y, width and height."""
        (left, top), (right, bottom) = self.rings[0].min(axis=0), self.rings[0].max(axis=0)
        return int(left), int(top), int(right - left), int(bottom - top)

    def polygon(self, tolerance: float) -> np.ndarray:
        """(K, 2) corners (x, y) of one outline, simplified, with the holes bridged into it."""
        outer, *holes = (simplified(ring, tolerance) for ring in self.rings)
        return bridged(outer, holes)


def find_regions(mask: np.ndarray, probability: np.ndarray) -> list[Region]:
    """The regions of a mask, in the order of their first pixels.

    Args:
        mask: (H, W) uint8, 0 background.
        probability: (H, W) of each pixel's class.
    """
    parts, starts, part_of_run = connected(mask)
    sums = np.add.reduceat(probability.ravel(), starts, dtype=np.float64)
    pixels = np.diff(np.append(starts, mask.size))
    means = np.bincount(part_of_run, sums)[1:] / np.bincount(part_of_run, pixels)[1:]
    labels = np.zeros(len(means) + 1, dtype=np.uint8)
    labels[part_of_run] = mask.ravel()[starts]
    return [Region(int(label), min(1.0, float(score)), rings) for label, score, rings in
            zip(labels[1:], means, outlines(parts), strict=True)]


def to_arrays(regions: Sequence[Region], size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Regions as arrays for a file.

    Args:
        size: (height, width) of the image.

    Returns:
        ``classes`` (N,) uint8 and ``scores`` (N,) float32 of the regions; ``rings`` (N,) int32, how
        many outlines each has; ``lengths`` (R,) int32, how many corners each of these has;
        ``corners`` (K, 2) int32; ``size`` (2,) int32.
    """
    rings = [ring for region in regions for ring in region.rings]
    return {
        "classes": np.array([region.label for region in regions], dtype=np.uint8),
        "scores": np.array([region.score for region in regions], dtype=np.float32),
        "rings": np.array([len(region.rings) for region in regions], dtype=np.int32),
        "lengths": np.array([len(ring) for ring in rings], dtype=np.int32),
        "corners": np.concatenate([np.zeros((0, 2), np.int32), *rings]),
        "size": np.array(size, dtype=np.int32),
    }


def from_arrays(arrays: dict[str, np.ndarray]) -> tuple[list[Region], Size]:
    """Regions, and (width, height) of their image, from what ``to_arrays`` returns.

    Raises:
        ValueError: the arrays do not fit together.
    """
    ends = np.cumsum(arrays["lengths"])
    if int(ends[-1] if len(ends) else 0) != len(arrays["corners"]) or (
            arrays["rings"].sum() != len(ends)):
        raise ValueError("the outlines are not complete")
    rings = iter(np.split(arrays["corners"], ends[:-1])) if len(ends) else iter(())
    height, width = arrays["size"].tolist()
    counts = zip(arrays["classes"], arrays["scores"], arrays["rings"], strict=True)
    return [Region(int(label), float(score), [next(rings) for _ in range(count)])
            for label, score, count in counts], (width, height)
