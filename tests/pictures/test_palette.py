import stat

import numpy as np
import pytest
from PIL import Image

from cosa.pictures import palette
from cosa.pictures.palette import overlay, save_image, save_mask, voc_palette


def test_voc_palette_has_the_published_colours():
    colors = voc_palette(256)
    assert colors[:5] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert colors[15] == (192, 128, 128) and colors[20] == (0, 64, 128)  # person, tv
    assert colors[255] == (224, 224, 192)  # the border of objects
    assert len(set(colors)) == 256
    assert voc_palette(21) == colors[:21] and voc_palette(0) == []
    with pytest.raises(ValueError):
        voc_palette(257)


def test_mask_round_trip(tmp_path):
    mask = np.array([[0, 1, 2], [255, 7, 0]], np.uint8)
    save_mask(tmp_path / "ü m.png", mask, [(0, 0, 0), (9, 8, 7), (1, 2, 3)])
    with Image.open(tmp_path / "ü m.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), mask)
        rgb = np.asarray(image.convert("RGB"))
    assert rgb[0].tolist() == [[0, 0, 0], [9, 8, 7], [1, 2, 3]]
    assert rgb[1].tolist()[:2] == [[224, 224, 192], [128, 128, 128]]
    assert [path.name for path in tmp_path.iterdir()] == ["ü m.png"]


def test_mask_is_readable_like_any_new_file(tmp_path):
    save_mask(tmp_path / "m.png", np.zeros((1, 1), np.uint8), [])
    (tmp_path / "plain").write_bytes(b"")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("mask", [np.zeros((1, 2, 2), np.uint8), np.zeros((2, 2), np.int64)])
def test_other_masks_are_refused(tmp_path, mask):
    with pytest.raises(ValueError, match="uint8"):
        save_mask(tmp_path / "m.png", mask, [])


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path, failure):
    path = tmp_path / ("n" * 251 + ".png")  # as long as names may be
    path.write_bytes(b"old")

    class Torn:
        def save(self, file, format):
            file.write(b"half")
            raise failure

    with pytest.raises(type(failure)):
        save_image(path, Torn())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_overlay_leaves_the_background_alone():
    image = Image.new("RGB", (3, 1), (100, 100, 100))
    mask = np.array([[0, 1, 2]], np.uint8)
    colors = [(0, 0, 0), (200, 0, 100), (0, 0, 0)]
    assert palette.overlay(image, mask, colors, alpha=1.0).getpixel((1, 0)) == (200, 0, 100)
    blended = np.asarray(overlay(image, mask, colors))[0].astype(int)
    assert np.abs(blended - [[100, 100, 100], [150, 50, 100], [50, 50, 50]]).max() <= 1
    assert blended[0].tolist() == [100, 100, 100]
    with pytest.raises(ValueError, match="size"):
        overlay(image, np.zeros((3, 1), np.uint8), colors)
