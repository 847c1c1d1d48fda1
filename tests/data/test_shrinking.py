"""Rows resized as Pillow resizes the whole image."""

import numpy as np
import pytest
from PIL import Image

from cosa.data import shrinking
from cosa.data.shrinking import resized_rows

B = Image.Resampling.BILINEAR


@pytest.mark.parametrize("size, target", [
    ((64, 48), (64, 48)), ((90, 70), (31, 24)), ((90, 70), (90, 33)), ((90, 70), (17, 70)),
    ((31, 20), (75, 66)), ((101, 47), (5, 2)), ((314, 20), (250, 27)), ((7, 300), (1, 1)),
    ((160, 20), (8, 1)), ((99, 98), (96, 104)), ((1, 5), (4, 2)),
])
@pytest.mark.parametrize("tall, at_once", [(1, 1), (7, 500), (1000, 10**7)])
def test_rows_are_bit_by_bit_those_of_pillow(size, target, tall, at_once, monkeypatch):
    monkeypatch.setattr(shrinking, "_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    for pixels in (rng.integers(0, 256, (*size, 3), np.uint8),
                   255 * rng.integers(0, 2, (*size, 3), np.uint8)):
        strips = (pixels[top : top + tall].copy() for top in range(0, size[0], tall))
        parts = list(resized_rows(strips, size, target))
        image = Image.fromarray(pixels).resize((target[1], size[0]), B).resize(target[::-1], B)
        assert np.array_equal(np.concatenate(parts), np.array(image))
        assert all(part.dtype == np.uint8 for part in parts)


def test_few_rows_are_asked_for_ahead():
    asked = 0

    def strips():
        nonlocal asked
        for _ in range(100):
            asked += 1
            yield np.zeros((10, 50_000, 3), np.uint8)

    rows = resized_rows(strips(), (1000, 50_000), (500, 25_000))
    next(rows)
    assert asked < 20
