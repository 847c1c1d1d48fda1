"""Pixels and sizes of images that lie on their side, against files written byte by byte."""

import io

import numpy as np
import pytest
from PIL import Image

from cosa.core.errors import UserError
from cosa.data.base import FileDataset
from cosa.data.images import image_size, read_image
from cosa.data.masks import MaskFiles, read_mask
from cosa.inference import outputs
from cosa.inference.jobs import Job
from tests.helpers.image_files import (
    ORIENTATION,
    STORED,
    chunk,
    exif,
    itxt,
    spliced,
    tiff,
    xmp,
)

UPRIGHT = (np.arange(60 * 90) * 7 % 251).astype(np.uint8).reshape(60, 90)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("orientation", STORED)
def test_pixels_of_uncompressed_tiff_are_the_files(tmp_path, orientation, dtype, order):
    values = UPRIGHT.astype(dtype) * (257 if dtype == np.uint16 else 1)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(STORED[orientation](values), orientation, order))
    image = read_image(path)
    assert image.size == image_size(path) == (90, 60)
    for band in np.moveaxis(np.asarray(image), -1, 0):
        np.testing.assert_array_equal(band, UPRIGHT)


@pytest.mark.parametrize("orientation", STORED)
def test_masks_are_upright_as_their_images(tmp_path, orientation):
    mask = (np.arange(12 * 8).reshape(8, 12) % 3).astype(np.uint8)
    (tmp_path / "a.tif").write_bytes(tiff(STORED[orientation](mask), orientation))
    metadata = Image.Exif()
    metadata[ORIENTATION] = orientation
    for name in ("a.png", "b.png"):
        picture = Image.fromarray(np.ascontiguousarray(STORED[orientation](mask)))
        picture.save(tmp_path / name, exif=metadata)
    for name in ("a.tif", "a.png"):
        np.testing.assert_array_equal(read_mask(tmp_path / name, 2), mask)
    masks = MaskFiles({"a": tmp_path / "a.tif"}, ("a", "b"))
    data = FileDataset(("a", "b"), ["a"], [[1, 1]], [tmp_path / "b.png"], masks)
    data.check()
    assert data.mask(0).shape == data.image(0).size[::-1] == (8, 12)


def png(*chunks, late):
    content = io.BytesIO()
    Image.fromarray(UPRIGHT).save(content, format="PNG")
    return spliced(content.getvalue(), *chunks, late=late)


RAW_PROFILE = b"Raw profile type exif\0\nexif\n      32\n" + exif(6).hex().encode()
ODD = {  # the chunks of a PNG file of 90 x 60 stored pixels, and whether it is seen sideways
    "exif": ([chunk(b"eXIf", exif(6))], True),
    "exif of big type": ([chunk(b"eXIf", exif(6, kind=4))], True),
    "xmp": ([itxt(xmp(8))], True),
    "exif before xmp": ([itxt(xmp(8)), chunk(b"eXIf", exif(3))], False),
    "raw profile": ([chunk(b"tEXt", RAW_PROFILE)], True),
    "9": ([chunk(b"eXIf", exif(9))], False),
    "0": ([chunk(b"eXIf", exif(0))], False),
    "text": ([chunk(b"eXIf", exif(6, kind=2, count=2))], False),
    "xmp of 9": ([itxt(xmp(9))], False),
    "other text": ([chunk(b"tEXt", b"Comment\0tiff:Orientation")], False),
    "no metadata": ([], False),
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("chunks, sideways", ODD.values(), ids=ODD)
def test_all_agree_on_png_files_with_odd_metadata(tmp_path, chunks, sideways, late):
    path, size = tmp_path / "a.png", (60, 90) if sideways else (90, 60)
    path.write_bytes(png(*chunks, late=late))
    assert read_image(path).size == image_size(path) == size
    mask = Image.new("L", size, 1)
    mask.save(tmp_path / "mask.png")
    data = FileDataset(("a",), ["a"], [[1]], [path],
                       MaskFiles({"a": tmp_path / "mask.png"}, ("a",)))
    data.check()
    Image.new("L", size[::-1], 1).save(tmp_path / "wrong.png")
    data.masks.paths["a"] = tmp_path / "wrong.png"
    with pytest.raises(UserError, match="they must have one size"):
        data.check()
    assert outputs.fits(Job("a", path, {"mask": tmp_path / "mask.png"}))
    assert not outputs.fits(Job("a", path, {"mask": tmp_path / "wrong.png"}))


@pytest.mark.parametrize("suffix", ["jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation, sideways", [(9, False), (0, False), (6, True), ("6", False)])
def test_all_agree_on_other_formats(tmp_path, suffix, orientation, sideways):
    metadata = Image.Exif()
    metadata[ORIENTATION] = orientation
    if isinstance(orientation, str):
        metadata = exif(int(orientation), kind=2, count=2)
        if suffix == "tif":
            pytest.skip("Pillow writes no such TIFF files")
        metadata = b"Exif\0\0" + metadata
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(UPRIGHT).convert("RGB").save(path, exif=metadata)
    size = (60, 90) if sideways else (90, 60)
    assert read_image(path).size == image_size(path) == size


def test_xmp_data_alone_turn_a_tiff(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(UPRIGHT).save(path, tiffinfo={700: xmp(6)})
    assert read_image(path).size == image_size(path) == (60, 90)


def test_late_metadata_are_found_without_reading_the_pixels(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(png(chunk(b"eXIf", exif(6)), late=True))
    monkeypatch.setattr(Image.Image, "load", None)
    assert image_size(path) == (60, 90)
    # A chunk that claims more bytes than the file has is none.
    cut = path.read_bytes()
    path.write_bytes(cut[: cut.rindex(b"eXIf") + 10])
    assert image_size(path) == (90, 60)
