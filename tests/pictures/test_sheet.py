"""Contact sheets: what is where, in the colours of the masks."""

import numpy as np
import pytest
from PIL import Image

from cosa.pictures.legend import BAR, GAP, text_font
from cosa.pictures.palette import voc_palette
from cosa.pictures.sheet import BOX, contact_sheet, ending, entry

PALETTE = voc_palette(4)
CLASSES = ("cat", "dog", "ship")


def plain(name, size, color, label):
    mask = np.full(size[::-1], label, np.uint8)
    return entry(name, "certainty 0.50", Image.new("RGB", size, color), mask)


@pytest.mark.parametrize("size", [(1000, 500), (3, 400), (1, 1), (48, 36)])
def test_pictures_are_fitted_into_their_box(size):
    made = plain("a", size, "white", 0)
    assert made.mask.shape == made.image.size[::-1]
    assert max(made.image.width / BOX[0], made.image.height / BOX[1]) == 1
    assert contact_sheet([made], CLASSES, PALETTE).width == 2 * BOX[0] + GAP // 2 + 2 * GAP


def test_images_lie_beside_their_masks_row_by_row():
    white = (200, 200, 200)
    entries = [plain(f"{k}.png", BOX, white, label) for k, label in enumerate((1, 0, 3))]
    sheet = contact_sheet(entries, CLASSES, PALETTE)
    assert sheet.size == (4 * BOX[0] + 5 * GAP, 2 * (BOX[1] + BAR + GAP) + GAP + BAR)
    half, centre = BOX[0] + GAP // 2, (GAP + BOX[0] // 2, GAP + BOX[1] // 2)
    for place, label in enumerate((1, 0, 3)):
        x = centre[0] + place % 2 * (2 * half + 2 * GAP - GAP // 2)
        y = centre[1] + place // 2 * (BOX[1] + BAR + GAP)
        assert sheet.getpixel((x, y)) == white
        blend = [(a + b) / 2 for a, b in zip(white, PALETTE[label], strict=True)]
        assert sheet.getpixel((x + half, y)) == pytest.approx(blend if label else white, abs=1)
    colors = {color for _, color in sheet.crop(
        (0, sheet.height - BAR, sheet.width, sheet.height)).getcolors(10**6)}
    assert {PALETTE[1], PALETTE[3]} <= colors and PALETTE[2] not in colors


def test_of_long_names_the_ending_is_shown():
    font = text_font()
    assert ending("a/b.png", 200, font) == "a/b.png"
    cut = ending("folder/" * 50 + "number 7\n.png", 200, font)
    assert cut.startswith("...") and cut.endswith("number 7\\n.png")
    assert 150 < font.getlength(cut) <= 200
    assert ending("abc", 1, font) == "..."
