import os
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from cosa.core.errors import UserError
from cosa.data import images
from cosa.data.base import check_end
from cosa.data.images import (
    image_size,
    network_input,
    open_image,
    read_image,
    to_planes,
    to_tensor,
)
from cosa.data.masks import read_mask
from cosa.data.transforms import training_views


def pixel(image, x=0, y=0):
    return image.getpixel((x, y))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize(
    ("orientation", "corner"),  # where the stored top left corner is shown, as (x, y) of 0 or -1
    [(1, (0, 0)), (2, (-1, 0)), (3, (-1, -1)), (4, (0, -1))]
    + [(5, (0, 0)), (6, (-1, 0)), (7, (-1, -1)), (8, (0, -1))],
)
def test_exif_rotation(tmp_path, suffix, orientation, corner):
    stored = Image.new("RGB", (64, 32))
    stored.paste((255, 255, 255), (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"a.{suffix}", exif=exif)
    image = read_image(tmp_path / f"a.{suffix}")
    assert image.size == ((64, 32) if orientation < 5 else (32, 64))
    corners = {
        (x, y): pixel(image, x % image.width, y % image.height) for x in (0, -1) for y in (0, -1)
    }
    assert max(corners, key=lambda at: sum(corners[at])) == corner
    assert sum(corners[corner]) > 700


@pytest.mark.parametrize(
    ("mode", "color", "suffix", "expected"),
    [
        ("RGB", (10, 20, 30), "png", (10, 20, 30)),
        ("L", 77, "png", (77, 77, 77)),
        ("1", 1, "png", (255, 255, 255)),
        ("LA", (0, 51), "png", (204, 204, 204)),
        ("RGBA", (255, 0, 0, 255), "png", (255, 0, 0)),
        ("RGBA", (0, 0, 0, 0), "png", (255, 255, 255)),
        ("RGBA", (0, 0, 255, 51), "webp", (204, 204, 255)),
        ("CMYK", (0, 255, 255, 0), "tif", (255, 0, 0)),
        ("I;16", 65535, "png", (255, 255, 255)),
        ("I;16", 257 * 100, "png", (100, 100, 100)),
        ("I;16", 300, "tif", (1, 1, 1)),
        ("I", 200, "tif", (200, 200, 200)),
        ("I", 257 * 9, "tif", (9, 9, 9)),
        ("F", 0.2, "tif", (51, 51, 51)),
        ("F", 51.0, "tif", (51, 51, 51)),
        ("F", 257 * 40.0, "tif", (40, 40, 40)),
    ],
)
def test_modes(tmp_path, mode, color, suffix, expected):
    Image.new(mode, (5, 3), color).save(tmp_path / f"a.{suffix}", **LOSSLESS.get(suffix, {}))
    image = read_image(tmp_path / f"a.{suffix}")
    assert (image.mode, image.size) == ("RGB", (5, 3))
    assert np.abs(np.subtract(pixel(image), expected)).max() <= (2 if suffix == "webp" else 0)


LOSSLESS = {"webp": {"lossless": True, "exact": True}}


def test_adobe_cmyk_jpeg_is_not_inverted(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert np.abs(np.subtract(pixel(read_image(tmp_path / "a.jpg")), (255, 0, 0))).max() < 4


def test_palette_with_transparency(tmp_path):
    stored = Image.new("P", (2, 1))
    stored.putpalette([255, 0, 0, 0, 255, 0])
    stored.putpixel((1, 0), 1)
    stored.save(tmp_path / "a.png", transparency=1)
    image = read_image(tmp_path / "a.png")
    assert [pixel(image, 0), pixel(image, 1)] == [(255, 0, 0), (255, 255, 255)]


def test_float_beyond_the_usual_ranges_uses_its_own(tmp_path):
    values = np.array([[-2.0, 0.0, 3.0, np.nan]], np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.asarray(read_image(tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 102, 255, 102]
    Image.fromarray(np.full((2, 2), -1.0, np.float32)).save(tmp_path / "b.tif")
    assert pixel(read_image(tmp_path / "b.tif")) == (0, 0, 0)


def test_one_pixel_wide_and_unusual_names(tmp_path):
    Image.new("RGB", (1, 700), (1, 2, 3)).save(tmp_path / "ä b %s.PNG")
    image = read_image(str(tmp_path / "ä b %s.PNG"))
    assert image.size == (1, 700)
    assert network_input(image, 32).shape == (3, 32, 32)


def test_hundred_megapixels_pass_without_a_warning(tmp_path):
    Image.new("L", (10_000, 10_000), 9).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.png").size == (10_000, 10_000)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [80, 30])  # 99 pixels: over the limit, and over Pillow's twofold
def test_too_many_pixels(tmp_path, monkeypatch, limit):
    Image.new("L", (33, 3)).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", limit)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UserError, match=r"a\.png has over .* megapixels"):
        read_image(tmp_path / "a.png")


def test_unreadable_files_are_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    Image.fromarray(noise).save(tmp_path / "whole.png")
    for name, content in {
        "cut.jpg": (tmp_path / "whole.jpg").read_bytes()[:1500],
        "cut.png": (tmp_path / "whole.png").read_bytes()[:3000],
        "text.jpg": b"not an image",
        "zero.jpg": b"",
        "head.png": (tmp_path / "whole.png").read_bytes()[:20],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"^[^\n]*{name}[^\n]*$"):
            read_image(tmp_path / name)
    for name in ["absent.jpg", "."]:
        with pytest.raises(UserError, match="absent" if name != "." else str(tmp_path)):
            read_image(tmp_path / name)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads every file")
def test_forbidden_file(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(UserError, match=r"a\.png.*ermission"):
        read_image(tmp_path / "a.png")


def test_damaged_metadata_is_no_hindrance(tmp_path):
    broken = b"Exif\0\0II*\0\x08\0\0\0\xff\xff"
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=broken)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_image(tmp_path / "a.jpg").size == (8, 4)


def test_avif_is_known_where_pillow_reads_it(tmp_path):
    readable = ".avif" in Image.registered_extensions()
    assert (".avif" in images.IMAGE_SUFFIXES) == readable
    if readable:
        Image.new("RGB", (9, 7)).save(tmp_path / "a.avif")
        assert read_image(tmp_path / "a.avif").size == (9, 7)


def test_to_tensor():
    rgb = np.array([[[0, 255, 51]]], np.uint8)
    for image in (rgb, Image.fromarray(rgb)):
        tensor = to_tensor(image)
        assert tensor.shape == (3, 1, 1) and tensor.dtype == torch.float32
        assert torch.equal(tensor.flatten(), torch.tensor([0.0, 1.0, 0.2]))


def test_network_input_is_plain_bilinear_for_benchmark_sizes():
    rgb = np.random.default_rng(0).integers(0, 256, (50, 37, 3), np.uint8)
    expected = F.interpolate(to_tensor(rgb)[None], (32, 32), mode="bilinear")[0]
    torch.testing.assert_close(network_input(Image.fromarray(rgb), 32), expected)


def test_network_input_does_not_alias_large_images():
    stripes = np.zeros((640, 640, 3), np.uint8)
    stripes[:, ::2] = 255  # plain bilinear sampling at a twentieth would hit arbitrary stripes
    tensor = network_input(Image.fromarray(stripes), 32)
    assert (tensor - 0.5).abs().max() < 0.01


# Decoding at a fraction of the size


def save_turned(path, pixels, orientation):
    """A JPEG file that is seen as ``pixels`` once its EXIF rotation is applied."""
    undo = {2: Image.FLIP_LEFT_RIGHT, 3: Image.ROTATE_180, 4: Image.FLIP_TOP_BOTTOM,
            5: Image.TRANSPOSE, 6: Image.ROTATE_90, 7: Image.TRANSVERSE, 8: Image.ROTATE_270}
    image = Image.fromarray(pixels)
    if orientation in undo:
        image = image.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, quality=95, subsampling=0, exif=exif)


def ramp(width, height):
    """Red rises to the right and green downwards, by a few levels per pixel."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([red, green, np.full_like(red, 90)], axis=-1).round().astype(np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_known_before_decoding(tmp_path, orientation):
    save_turned(tmp_path / "a.jpg", ramp(61, 43), orientation)
    image = open_image(tmp_path / "a.jpg")
    assert image.reducible and image.size == (61, 43)
    whole = image.decode()
    assert (whole.reduction, whole.origin, whole.image.size) == (1, (0, 0), (61, 43))
    assert np.array_equal(whole.image, read_image(tmp_path / "a.jpg"))
    assert np.abs(np.asarray(whole.image).astype(int) - ramp(61, 43)).max() <= 6


@pytest.mark.parametrize("shrink, reduction", [
    (0.4, 1), (2.9, 1), (3.0, 2), (5.9, 2), (6.0, 4), (11.9, 4), (12.0, 8), (100.0, 8),
])
def test_reductions_leave_a_margin(tmp_path, shrink, reduction):
    save_turned(tmp_path / "a.jpg", ramp(61, 43), 1)
    decoded = open_image(tmp_path / "a.jpg").decode(shrink)
    assert decoded.reduction == reduction
    assert decoded.image.size == (-(-61 // reduction), -(-43 // reduction))


@pytest.mark.parametrize("size", [(6, 4), (7, 300), (1, 1)])
def test_images_of_a_few_pixels_are_not_reduced(tmp_path, size):
    Image.new("RGB", size, (200, 100, 50)).save(tmp_path / "a.jpg")
    decoded = open_image(tmp_path / "a.jpg").decode(16)
    assert (decoded.image.size, decoded.reduction) == (size, 1)


@pytest.mark.parametrize("size", [(61, 43), (64, 40), (67, 41), (33, 50)])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shrink", [3, 6, 12])
def test_boxes_keep_their_place_in_a_reduced_image(tmp_path, size, orientation, shrink):
    save_turned(tmp_path / "a.jpg", ramp(*size), orientation)
    decoded = open_image(tmp_path / "a.jpg").decode(shrink)
    left, top, right, bottom = box = decoded.box((0, 0, *size))
    assert 0 <= left < right <= decoded.image.width and 0 <= top < bottom <= decoded.image.height
    assert (right - left, bottom - top) == tuple(n / decoded.reduction for n in size)
    small = [round(n / shrink) for n in size]
    found = decoded.image.resize(small, Image.BILINEAR, box=box)
    full = read_image(tmp_path / "a.jpg").resize(small, Image.BILINEAR)
    # One pixel of the full image makes 3.8 levels or more; borders are clamped in either.
    apart = np.abs(np.asarray(found).astype(int) - np.asarray(full))
    assert apart[1:-1, 1:-1].max() <= 3


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_are_reduced_too(tmp_path, mode):
    Image.fromarray(ramp(64, 48)).convert(mode).save(tmp_path / "a.jpg", quality=95)
    decoded = open_image(tmp_path / "a.jpg").decode(4)
    full = read_image(tmp_path / "a.jpg").resize((32, 24), Image.BOX)
    assert decoded.image.mode == "RGB" and decoded.reduction == 2
    assert np.abs(np.asarray(decoded.image).astype(int) - np.asarray(full)).mean() < 1


def test_a_jpeg_of_several_pictures_shows_its_first(tmp_path):
    first, second = Image.fromarray(ramp(64, 48)), Image.new("RGB", (64, 48))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    full = read_image(tmp_path / "a.jpg")
    decoded = open_image(tmp_path / "a.jpg").decode(4)
    assert full.size == (64, 48) and decoded.image.size == (32, 24)
    apart = np.asarray(decoded.image).astype(int) - np.asarray(full.resize((32, 24), Image.BOX))
    assert np.abs(apart).mean() < 1


def test_other_formats_are_always_decoded_whole(tmp_path):
    Image.fromarray(ramp(61, 43)).save(tmp_path / "a.png")
    image = open_image(tmp_path / "a.png")
    assert not image.reducible and image.size == (61, 43)
    decoded = image.decode(8)
    assert decoded.reduction == 1 and np.array_equal(decoded.image, ramp(61, 43))


def test_damaged_pixels_are_found_when_decoding(tmp_path):
    save_turned(tmp_path / "a.jpg", ramp(61, 43), 1)
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    for shrink in (1.0, 4.0):
        image = open_image(tmp_path / "a.jpg")
        with pytest.raises(UserError, match="a.jpg cannot be read as an image"):
            image.decode(shrink)


def test_the_planes_of_a_batch_are_those_of_its_images():
    pixels = torch.randint(0, 256, (2, 5, 4, 3), dtype=torch.uint8)
    planes = to_planes(pixels)
    assert planes.shape == (2, 3, 5, 4) and planes.is_contiguous()
    assert torch.equal(planes[1], to_tensor(pixels[1].numpy()))


# What is no image at all


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes and devices of POSIX")
def test_pipes_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    for read in (read_image, image_size, open_image, lambda path: read_mask(path, 3), check_end):
        for name in ("a.png", "b.png"):
            with pytest.raises((UserError, OSError), match="device, pipe or socket"):
                read(tmp_path / name)


def test_too_long_a_side(tmp_path, monkeypatch):
    Image.new("L", (33, 1)).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_SIDE", 32)
    for read in (read_image, image_size):
        with pytest.raises(UserError, match=r"a\.png has a side of over 32 pixels"):
            read(tmp_path / "a.png")


def test_an_image_of_another_size_than_announced_is_refused(tmp_path):
    Image.new("L", (33, 5)).save(tmp_path / "a.png")
    image = open_image(tmp_path / "a.png")
    image.size = (5, 33)
    with pytest.raises(UserError, match="its size is not the one that its header tells"):
        image.decode()


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000), (1, 1), (2, 5000)])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_lines_of_pixels_are_images_too(tmp_path, size, suffix):
    Image.new("RGB", size, (200, 100, 50)).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    assert image.size == size and network_input(image, 32).shape == (3, 32, 32)
    for seed in range(20):
        views = training_views(open_image(tmp_path / f"a.{suffix}"), np.random.default_rng(seed),
                               crop_size=32)
        assert views["weak"].shape == views["strong"].shape == (32, 32, 3) and views["valid"].any()
