"""What became of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cosa.core.errors import UserError
from cosa.inference.jobs import Job
from cosa.inference.pixels import Size


@dataclass(frozen=True)
class Found:
    """One class of a mask."""

    label: int
    """0 the background, k the k-th class."""
    share: float
    """Of the image's pixels, in (0, 1]."""
    probability: float | None
    """Mean over these pixels; None where only the mask is known."""


def found(classes: Sequence[int], pixels: Tensor, probability: Tensor) -> list[Found]:
    """What a mask holds.

    Args:
        classes: labels of the K maps that it is made of.
        pixels: of each, (K,) int64.
        probability: mean over these, (K,) float64.
    """
    total = int(pixels.sum())
    return [
        Found(label, count / total, mean)
        for label, count, mean in zip(classes, pixels.tolist(), probability.tolist(), strict=True)
        if count
    ]


@dataclass
class Outcome:
    """What became of a job."""

    job: Job
    error: UserError | None = None
    skipped: bool = False
    """Its files were there already."""
    seconds: float = 0.0
    """Of work on it, its part of its batch included; waiting does not count."""
    size: Size | None = None
    """(height, width)"""
    found: list[Found] | None = None
    """By label; where ``details`` was asked for."""
    empty: bool | None = None
    """Whether the mask is background alone; None where none was made, or not in one piece."""
    certainty: float | None = None
    """In [0, 1], of the network's segmentation, before any CRF; see ``cosa.inference.certainty``.
    None where none was made, or where the files of an earlier run do not tell."""
    mask: np.ndarray | None = None
    """(H, W) uint8; where ``keep_masks`` was asked for."""
