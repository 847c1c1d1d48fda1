"""JPEG files of smooth noise, which stand in for photographs where no data set is at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from cosa.data.base import FileDataset

QUALITY = 90
"""Of the JPEG files."""


def texture(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Smooth noise of all scales, coarse ones strongest, as in photographs; RGB."""
    total = np.zeros((height, width, 3), np.float32)
    for cell, strength in ((128, 60), (32, 40), (8, 22), (2, 30)):
        noise = rng.normal(128, strength, (height // cell + 2, width // cell + 2, 3))
        coarse = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
        total += np.asarray(coarse.resize((width, height), Image.BICUBIC), np.float32) - 128
    return Image.fromarray((128 + total).clip(0, 255).astype(np.uint8))


def textures(folder: Path, count: int, width: int, height: int) -> FileDataset:
    """JPEG files of ``texture``, with a label each."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for path in paths:
        texture(width, height, rng).save(path, quality=QUALITY)
    return FileDataset(("thing",), [path.stem for path in paths], np.ones((count, 1)), paths)
