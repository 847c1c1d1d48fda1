import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from cosa.data.images import to_tensor
from cosa.distill import crops
from cosa.distill.photographs import Photographs

SIDE = 64


def ramps():
    """Red tells the column, green the row, as parts of 255: (3, SIDE, SIDE) uint8."""
    steps = torch.round((torch.arange(SIDE) + 0.5) / SIDE * 255).to(torch.uint8)
    blue = torch.full((SIDE, SIDE), 128, dtype=torch.uint8)
    return torch.stack([steps.expand(SIDE, SIDE), steps[:, None].expand(SIDE, SIDE), blue])


def held(pixels, aspect=1.0):
    """One photograph, which is to learn from."""
    only = torch.tensor([0])
    return Photographs(pixels[None], torch.tensor([aspect]), only, only)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def test_a_crop_shows_its_box():
    left, top, wide, high, size = 0.25, 0.125, 0.5, 0.75, 32
    boxes = torch.tensor([[left, top, wide, high]] * 2).T
    plain, mirrored = crops.cut(ramps()[None].expand(2, -1, -1, -1), boxes,
                                torch.tensor([False, True]), size)
    middles = (torch.arange(size) + 0.5) / size
    columns = (left + wide * middles).expand(size, size)
    rows = (top + high * middles)[:, None].expand(size, size)
    # A level is a 255th, and half of one may be lost.
    torch.testing.assert_close(plain[0], columns, atol=0.003, rtol=0)
    torch.testing.assert_close(plain[1], rows, atol=0.003, rtol=0)
    torch.testing.assert_close(mirrored, plain.flip(2), atol=1e-5, rtol=0)


def test_the_whole_photograph_has_no_black_border():
    white = torch.full((1, 3, SIDE, SIDE), 255, dtype=torch.uint8)
    box = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    # Also where a pixel of the crop lies within the outermost half pixel of the photograph.
    for size in (SIDE // 2, 4 * SIDE):
        crop = crops.cut(white, box, torch.tensor([False]), size)
        assert crop.shape == (1, 3, size, size) and float(crop.min()) == pytest.approx(1)


@pytest.mark.parametrize("aspect", [1.0, 500 / 375, 375 / 500, 4.0])
def test_boxes_are_of_the_area_and_the_aspect_that_they_should(aspect):
    count = 4000
    left, top, wide, high = crops.random_boxes(torch.full((count,), aspect), generator(0))
    for first, length in ((left, wide), (top, high)):
        assert float(first.min()) >= 0 and float((first + length).max()) <= 1 + 1e-6
        assert float(length.max()) <= 1
    stretched = (wide * aspect / high).log().abs()
    assert float(stretched.max()) <= math.log(4 / 3) + 1e-5
    areas = wide * high
    assert float(areas.min()) == pytest.approx(0.2, abs=0.02)
    if aspect != 4:  # of a panorama, no crop of a usual aspect shows more than a third
        assert float(areas.max()) > 0.97 and float(areas.mean()) == pytest.approx(0.58, abs=0.03)
        assert float(stretched.min()) < 0.01
    else:
        assert float(areas.max()) == pytest.approx(1 / 3, abs=0.001)
    # They lie anywhere: the mean of what is left before them is half of what is left.
    for first, length in ((left, wide), (top, high)):
        inner = length < 0.95
        before = (first / (1 - length))[inner]
        assert float(before.mean()) == pytest.approx(0.5, abs=1.5 / len(before) ** 0.5)


def test_crops_are_a_function_of_the_seed():
    photographs = held(ramps(), 1.5)
    first, again, other = (crops.RandomCrops(photographs, 32, 6, 0.5, seed) for seed in (1, 1, 2))
    batches = [first.next(), first.next()]
    assert batches[0].shape == (6, 3, 32, 32) and batches[0].dtype == torch.float32
    assert torch.equal(batches[0], again.next()) and torch.equal(batches[1], again.next())
    assert not torch.equal(*batches) and not torch.equal(batches[0], other.next())


def test_half_of_the_crops_are_mirrored(monkeypatch):
    monkeypatch.setattr(crops, "JITTER", 0.0)
    batch = crops.RandomCrops(held(ramps()), 16, 400, 0.0, 0).next()
    flips = (batch[:, 0, :, 0] > batch[:, 0, :, -1]).all(1)
    assert 160 < int(flips.sum()) < 240
    assert (batch[:, 1, 0] < batch[:, 1, -1]).all()  # none stands on its head


def test_colours_are_those_of_pillow():
    # So soft that Pillow, which cuts and rounds after each of the three, loses next to nothing.
    pixels = np.random.default_rng(0).integers(90, 150, (20, 20, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    for factors in ((1.3, 1.0, 1.0), (1.0, 0.7, 1.0), (1.0, 1.0, 1.36), (0.8, 1.2, 0.64)):
        wanted = image
        kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for kind, factor in zip(kinds, factors, strict=True):
            wanted = kind(wanted).enhance(factor)
        found = crops.jittered(to_tensor(image)[None], torch.tensor(factors)[:, None])
        torch.testing.assert_close(found[0], to_tensor(wanted), atol=3.1 / 255, rtol=0)


def test_colours_change_a_little():
    grey = torch.full((3, SIDE, SIDE), 100, dtype=torch.uint8)
    seen = 255 * crops.RandomCrops(held(grey), 8, 200, 0.0, 0).next()[:, 0, 0, 0]
    # A factor of 1 +- 0.36; contrast and saturation of a grey picture leave it as it is.
    assert 63.9 <= float(seen.min()) < 67 and 133 < float(seen.max()) <= 136.1


def test_mixing_by_hand():
    images = torch.tensor([0.0, 0.4, 1.0, 0.6])[:, None, None, None].expand(4, 3, 2, 2)
    found = crops.mixed(images, torch.tensor([0.25, 0.5]))[:, 0, 0, 0]
    # 0.25 * 0.0 + 0.75 * 0.6 and 0.5 * 0.4 + 0.5 * 0.0, and those that nothing is added to.
    assert found.tolist() == pytest.approx([0.45, 0.2, 1.0, 0.6])
    assert torch.equal(crops.mixed(images, torch.tensor([])), images)


@pytest.mark.parametrize("mix, count", [(0.0, 0), (0.25, 2), (1.0, 8)])
def test_so_many_crops_are_mixed(mix, count):
    """What is drawn before the weights is the same for any share."""
    photographs = held(ramps())
    plain = crops.RandomCrops(photographs, 16, 8, 0.0, 0).next()
    batch = crops.RandomCrops(photographs, 16, 8, mix, 0).next()
    changed = [not torch.equal(*pair) for pair in zip(plain, batch, strict=True)]
    assert changed == [True] * count + [False] * (8 - count)
