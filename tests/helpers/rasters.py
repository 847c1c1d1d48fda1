"""TIFF files by the package rasterio."""

from __future__ import annotations

from pathlib import Path

import numpy as np

PLACE = {"crs": "EPSG:32632", "transform": (0.1, 0.0, 500000.0, 0.0, -0.1, 5000000.0)}
"""Of a file in Bavaria, with pixels of 10 cm."""


def write_raster(path: Path, values: np.ndarray, **options) -> Path:
    """Write (h, w, bands); ``options`` are those of ``rasterio.open``."""
    import rasterio

    if "transform" in options:
        options["transform"] = rasterio.Affine(*options["transform"])
    height, width, bands = values.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", driver="GTiff", width=width, height=height, count=bands,
                       dtype=values.dtype, **options) as file:
        file.write(np.moveaxis(values, -1, 0))
    return path


def smooth(size: tuple[int, int], seed: int = 0, cell: int = 9) -> np.ndarray:
    """(h, w, 3) uint8 of random blocks: a random network makes several classes of them."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (size[0] // cell + 1, size[1] // cell + 1, 3), np.uint8)
    return coarse.repeat(cell, 0).repeat(cell, 1)[: size[0], : size[1]]
