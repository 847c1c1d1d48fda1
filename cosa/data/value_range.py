"""The range of values of a training set, where its files' depth does not tell it."""

from __future__ import annotations

import numpy as np

from cosa.core.errors import UserError
from cosa.core.terminal import note
from cosa.core.threads import in_threads
from cosa.data.base import FileDataset
from cosa.data.images import LazyFile
from cosa.data.reading import Reading

IMAGES, PIXELS = 100, 10_000
"""How many images are looked at, and about how many pixels of each, both evenly spread."""

LOW, HIGH = 0.5, 99.5
"""Percentiles of the values that become black and white: a dead pixel or a lamp decides nothing."""


def measured(dataset: FileDataset, bands: tuple[int, int, int] | None) -> tuple[float, float]:
    """The percentiles ``LOW`` and ``HIGH`` of the images, in the files' own values.

    Nothing is drawn: the same files yield the same numbers.

    Args:
        bands: of the files, see ``Reading``.

    Raises:
        UserError: an image cannot be read, the files are of different depths, or all values are
            the same.
    """
    count = min(len(dataset), IMAGES)
    paths = [dataset.image_paths[index * len(dataset) // count] for index in range(count)]
    reading = Reading(bands=bands)

    def look(path: str) -> tuple[tuple[float, float] | None, np.ndarray]:
        file = LazyFile(path, reading)
        return file.limits, file.sample(PIXELS)

    found = in_threads(look, paths)
    for path, (limits, _) in zip(paths, found, strict=True):
        if limits != found[0][0]:
            raise UserError(
                f"data.value_range=auto needs files of one depth: {paths[0]} holds "
                f"{_told(found[0][0])}, {path} {_told(limits)}; save them alike, or set [low, high]"
            )
    values = np.concatenate([values for _, values in found]) if found else np.zeros(0)
    if not values.size or values.min() == values.max():
        raise UserError("data.value_range=auto: the training images hold a single value; check "
                        "data.images or data.root, or set [low, high]")
    # Nearest: a value that a file holds, so that whole numbers stay whole.
    low, high = map(float, np.percentile(values, (LOW, HIGH), method="nearest"))
    if low == high:  # nearly everything is background
        low, high = float(values.min()), float(values.max())
    note(f"data.value_range=auto: {low:.6g} becomes black and {high:.6g} white, percentiles {LOW} "
         f"and {HIGH} of {count} training images")
    return low, high


def _told(limits: tuple[float, float] | None) -> str:
    return "numbers without a range" if limits is None else f"{limits[0]:g}..{limits[1]:g}"
