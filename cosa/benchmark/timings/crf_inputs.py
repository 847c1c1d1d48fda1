"""Photographs, and probabilities of classes for them, to time a CRF on."""

from __future__ import annotations

import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cosa.data.images import read_image
from cosa.data.scenes.dataset import generate
from cosa.inference.jobs import plan
from cosa.inference.pixels import Size
from cosa.inference.segmenter import resized

CELL = 8
"""Pixels per cell of the grid on which the classes are made, as a network's tokens are larger."""
PRESENT = 5
"""Classes that a photograph shows."""
_NOISE_CELLS = 4
_COLOUR_WEIGHT = 200.0
_FURTHEST = 8.0
_ABSENT = -10.0


def class_maps(photo: np.ndarray, classes: int, seed: int) -> Tensor:
    """Probabilities as coarse and as sure as a network's, which follow the colours of a photo.

    ``PRESENT`` classes each have the colour of a random cell of ``CELL`` pixels. Their scores
    fall with the squared distance of a cell's colour to theirs, from 0 for the nearest; those of
    the other classes are low; all have smooth noise. The scores are enlarged bilinearly.

    Args:
        photo: (H, W, 3) uint8.
        classes: number K.

    Returns:
        (K, H, W) float32, with sum 1 at each pixel.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = photo.shape[:2]
    grid = max(1, height // CELL), max(1, width // CELL)
    pixels = torch.tensor(photo).permute(2, 0, 1).float()[None] / 255
    cells = F.interpolate(pixels, grid, mode="area")[0]
    coarse = [side // _NOISE_CELLS + 1 for side in grid]
    noise = torch.randn(1, classes, *coarse, generator=generator)
    scores = F.interpolate(noise, grid, mode="bicubic")[0]
    present = min(PRESENT, classes)
    chosen = torch.randint(grid[0] * grid[1], (present,), generator=generator)
    colours = cells.flatten(1)[:, chosen, None, None]
    distance = (cells[:, None] - colours).square().sum(dim=0)
    further = _COLOUR_WEIGHT * (distance - distance.amin(dim=0))
    # Bounded: halfway between two classes, these still score above the absent ones.
    scores[:present] -= further.clamp(max=_FURTHEST)
    scores[present:] += _ABSENT
    return F.interpolate(scores[None], (height, width), mode="bilinear")[0].softmax(dim=0)


def read_photos(folder: str | None, size: Size, limit: int) -> tuple[list[np.ndarray], str]:
    """Images (H, W, 3) uint8 of ``size``, turned for upright ones, and a clause about them.

    Raises:
        UserError: there is no image in the folder, or one cannot be read.
    """
    height, width = size
    if folder is None:
        side = max(size)
        scene = generate(0, "test", 0, side)[0]
        top, left = (side - height) // 2, (side - width) // 2
        cut = scene[top : top + height, left : left + width].copy()
        return [cut], "a generated scene, drawn at this size, no photograph"
    with tempfile.TemporaryDirectory() as nowhere:
        jobs = plan(folder, nowhere)
    chosen = [read_image(jobs[index].source) for index in range(min(limit, len(jobs)))]
    photos = [
        np.array(resized(image, size if image.width >= image.height else size[::-1]))
        for image in chosen
    ]
    return photos, f"{len(photos)} photographs, resized to this (upright ones turned)"
