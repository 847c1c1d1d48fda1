"""PNG files that are written from the top down."""

import io

import numpy as np
import pytest
from PIL import Image

from cosa.pictures import png_rows
from cosa.pictures.palette import save_mask
from cosa.pictures.png_rows import PngRows

PALETTE = [(0, 0, 0), (9, 8, 7), (1, 2, 3)]


@pytest.mark.parametrize("chunk", [1, 2**20])
@pytest.mark.parametrize("palette", [None, PALETTE])
def test_the_file_is_that_of_the_whole_mask(tmp_path, monkeypatch, chunk, palette):
    monkeypatch.setattr(png_rows, "_CHUNK", chunk)
    mask = np.random.default_rng(0).integers(0, 256, (37, 53), np.uint8)
    file = io.BytesIO()
    rows = PngRows(file, mask.shape, palette)
    for part in np.split(mask, [1, 1, 30]):
        rows.write(part)
    rows.finish()
    with Image.open(file) as image:
        image.load()
        assert image.mode == ("L" if palette is None else "P")
        assert np.array_equal(np.array(image), mask)
        if palette is not None:
            save_mask(tmp_path / "a.png", mask, PALETTE)
            with Image.open(tmp_path / "a.png") as whole:
                assert image.getpalette() == whole.getpalette()
    with Image.open(file) as image:
        image.verify()
