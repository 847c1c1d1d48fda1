"""Conversion in strips, and the memory that it takes."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cosa.data import layout
from cosa.data.images import read_image
from cosa.data.modes import to_rgb
from cosa.data.orientation import AS_STORED, TURNS
from tests.helpers.tiny import ROOT


def picture(mode):
    rng = np.random.default_rng(0)
    if mode == "F":
        return Image.fromarray(rng.normal(0, 40, (23, 31)).astype(np.float32))
    if mode == "I":
        return Image.fromarray(rng.integers(-9, 900, (23, 31)).astype(np.int32))
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (23, 31)).astype(np.uint16))
    image = Image.fromarray(rng.integers(0, 256, (23, 31, 4), np.uint8), "RGBA")
    if mode == "P transparent":
        image = image.convert("RGB").quantize(9)
        image.info["transparency"] = bytes(range(0, 250, 25))
        return image
    if mode == "RGB transparent":
        image = image.convert("RGB")
        image.info["transparency"] = image.getpixel((3, 4))
        return image
    return image.quantize(7) if mode == "P" else image.convert("RGB").convert(mode) if (
        mode in ("CMYK", "YCbCr", "LAB")) else image.convert(mode)


MODES = ["1", "L", "P", "P transparent", "LA", "RGB", "RGB transparent", "RGBA", "CMYK", "YCbCr",
         "I", "I;16", "F"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("turn", [AS_STORED, *TURNS.values()], ids=lambda turn: str(turn.method))
@pytest.mark.parametrize("mode", MODES)
def test_strips_make_the_whole(mode, turn, monkeypatch):
    image = picture(mode)
    whole = to_rgb(image)
    expected = whole if turn.method is None else whole.transpose(turn.method)
    monkeypatch.setattr(layout, "STRIP", 100)  # three rows
    found = to_rgb(image, turn)
    assert found.mode == "RGB" and found.size == turn.size(image.size)
    np.testing.assert_array_equal(found, expected)


PEAK = """
import sys
from cosa.core.memory import PEAK_RESIDENT, resident
from cosa.data.images import read_image
before = resident(PEAK_RESIDENT)
image = read_image(sys.argv[1])
print((resident(PEAK_RESIDENT) - before) / (image.width * image.height))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells the peak")
@pytest.mark.parametrize("sideways", [False, True])
def test_a_few_bytes_that_become_many_pixels_take_little_more_than_the_image(tmp_path, sideways):
    image = Image.new("P", (5000, 4000), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    metadata = Image.Exif()
    metadata[0x0112] = 6 if sideways else 1
    image.save(tmp_path / "a.png", transparency=bytes([0, 128]), exif=metadata)
    assert (tmp_path / "a.png").stat().st_size < 40_000
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path / "a.png")], cwd=ROOT,
                          capture_output=True, text=True, check=True)
    # One byte of the file's, four of the result's, and those of a strip; all at once took 17.
    assert 4 < float(done.stdout) < 7
    assert read_image(tmp_path / "a.png").getpixel((7, 9)) == (227, 177, 152)
