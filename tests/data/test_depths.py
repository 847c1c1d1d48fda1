"""What the networks see of files that are deeper than 8 bits or have other bands than RGB."""

import builtins
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cosa.config import from_dict
from cosa.core.errors import UserError
from cosa.data import build_dataset, layout, resolved
from cosa.data.base import FileDataset
from cosa.data.check import examine
from cosa.data.images import LazyFile, image_size, read_image
from cosa.data.masks.files import read_mask
from cosa.data.orientation import AS_STORED, TURNS
from cosa.data.reading import Extent, Reading
from cosa.data.value_range import measured
from tests.helpers.deep_files import png16, pnm, tiff
from tests.helpers.image_files import STORED, chunk
from tests.helpers.tiny import ROOT

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 65536, (23, 31, 1)).astype(np.uint16)
RGB = RNG.integers(0, 65536, (23, 31, 3)).astype(np.uint16)
FOUR = RNG.integers(0, 65536, (23, 31, 4)).astype(np.uint16)
TWELVE = RNG.integers(0, 65536, (23, 31, 12)).astype(np.uint16)


def level(values, low=0, high=65535):
    """The levels of values as 255 (v - low) / (high - low), clipped and rounded."""
    shares = (np.asarray(values, np.float64) - low) / (high - low)
    return np.rint(255 * np.clip(shares, 0, 1)).astype(int)


def seen(tmp_path, content, reading=None, name="a.bin"):
    path = tmp_path / name
    path.write_bytes(content)
    decoded = LazyFile(path, reading or Reading()).decode()
    size = image_size(path, reading or Reading())
    assert decoded.image.mode == "RGB" and decoded.image.size == size
    return np.asarray(decoded.image).astype(int), decoded.extent


def assert_seen(tmp_path, content, expected, reading=None):
    found, extent = seen(tmp_path, content, reading)
    np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))
    return extent


# Depths


def test_every_grey_value_of_16_bits_is_rounded_as_it_was(tmp_path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    assert_seen(tmp_path, png16(values), ((values.astype(int) + 128) // 257))


WAYS = {
    "png": lambda values: png16(values),
    "pnm": lambda values: pnm(values, 65535),
    "tiff": lambda values: tiff(values, 2 if values.shape[2] == 3 else 1),
    "tiff >": lambda values: tiff(values, 2 if values.shape[2] == 3 else 1, order=">"),
    "tiff deflated": lambda values: tiff(values, 2 if values.shape[2] == 3 else 1, deflated=True),
    "tiff > deflated, strips": lambda values: tiff(
        values, 2 if values.shape[2] == 3 else 1, order=">", deflated=True, rows=5),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("values", [GREY, RGB], ids=["grey", "rgb"])
def test_16_bits_and_12_of_them(tmp_path, values, way):
    extent = assert_seen(tmp_path, way(values), level(values))
    assert extent == Extent(values.min(), values.max(), 0, 65535) and extent.doubt == ""
    twelve = values >> 4
    extent = assert_seen(tmp_path, way(twelve), level(twelve))
    assert level(twelve).max() == 16  # so black, which is told
    assert extent.doubt == (
        f"its values, {twelve.min()}..{twelve.max()}, use a small part of 0..65535")
    reading = Reading(value_range=(0, 4095))
    extent = assert_seen(tmp_path, way(twelve), level(twelve, 0, 4095), reading)
    assert extent.doubt == ""


@pytest.mark.parametrize("bits, doubtful", [(10, True), (12, True), (14, True), (16, False)])
def test_a_range_makes_any_depth_look_the_same(tmp_path, bits, doubtful):
    values = GREY >> (16 - bits)
    found, extent = seen(tmp_path, png16(values), Reading(value_range=(0, 2**bits - 1)))
    assert np.abs(found - level(GREY)).max() <= (1 if bits < 16 else 0)
    assert found.mean() == pytest.approx(127.5, abs=6) and not extent.doubt
    assert bool(seen(tmp_path, png16(values))[1].doubt) == doubtful


@pytest.mark.parametrize("order", ["<", ">"])
def test_12_bits_of_a_tiff_file_are_its_depth(tmp_path, order):
    if order == ">":
        pytest.importorskip("tifffile")
        pytest.importorskip("imagecodecs")
    values = (GREY >> 4)[:, :30]
    content = tiff(values, bits=12, order=order)
    extent = assert_seen(tmp_path, content, level(values, 0, 4095))
    assert (extent.low, extent.high, extent.doubt) == (0, 4095, "")


def test_grey_jpeg_2000_of_16_bits(tmp_path):
    Image.fromarray(GREY[..., 0]).save(tmp_path / "a.jp2", irreversible=False)
    assert_seen(tmp_path, (tmp_path / "a.jp2").read_bytes(), level(GREY))


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("largest", [100, 255, 1023, 4095, 65535])
@pytest.mark.parametrize("bands", [1, 3])
def test_pnm_files_say_their_largest_value(tmp_path, bands, largest, plain):
    values = (RGB[..., :bands].astype(int) * largest // 65535).astype(np.uint16)
    extent = assert_seen(tmp_path, pnm(values, largest, plain), level(values, 0, largest))
    assert (extent is None) == (largest == 255)
    rounding = largest / 255 if plain and bands == 3 and largest > 255 else 0  # Pillow's 8 bits
    low, high = largest // 4, largest // 2
    found, _ = seen(tmp_path, pnm(values, largest, plain), Reading(value_range=(low, high)))
    expected = level(values, low, high)
    assert np.abs(found - expected).max() <= np.ceil(rounding / 2 * 255 / (high - low))


@pytest.mark.parametrize("content", [pnm(GREY >> 8, 65535), png16(GREY >> 8)])
def test_a_dark_image_of_16_bits_stays_dark(tmp_path, content):
    found, extent = seen(tmp_path, content)
    assert found.max() == 1 and "small part" in extent.doubt


def test_a_file_that_ends_before_its_image(tmp_path):
    (tmp_path / "a.ppm").write_bytes(pnm(RGB, 65535)[:-1])
    with pytest.raises(UserError, match="a.ppm cannot be read as an image: .* ends before"):
        read_image(tmp_path / "a.ppm")


@pytest.mark.parametrize("order", ["<", ">"])
def test_white_is_zero(tmp_path, order):
    content = tiff(GREY, photometric=0, order=order)
    if order == ">":
        pytest.importorskip("tifffile")
    assert_seen(tmp_path, content, 255 - level(GREY))
    assert_seen(tmp_path, content, 255 - level(GREY, 100, 5000), Reading(value_range=(100, 5000)))
    eight = (GREY >> 8).astype(np.uint8)
    assert_seen(tmp_path, tiff(eight, photometric=0), 255 - eight.astype(int))


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("bands", [1, 3])
def test_deep_tiff_files_are_upright(tmp_path, orientation, bands):
    values = RGB[..., :bands]
    stored = np.stack([STORED[orientation](values[..., k]) for k in range(bands)], axis=-1)
    content = tiff(stored, 2 if bands == 3 else 1, orientation=orientation)
    assert_seen(tmp_path, content, level(values))


@pytest.mark.parametrize("turn", [AS_STORED, *TURNS.values()], ids=lambda turn: str(turn.method))
def test_arrays_turn_as_images_do(turn):
    pixels = RGB.astype(np.uint8)
    np.testing.assert_array_equal(turn.turned(pixels), turn.applied(Image.fromarray(pixels)))


@pytest.mark.parametrize("rows", [1, 7, 23])
def test_strips_make_the_whole(tmp_path, monkeypatch, rows):
    contents = [png16(RGB), png16(FOUR), pnm(RGB, 65535), tiff(GREY), tiff(GREY.astype(np.float32))]
    whole = [seen(tmp_path, content)[0] for content in contents]
    monkeypatch.setattr(layout, "STRIP", 31 * rows)
    for content, expected in zip(contents, whole, strict=True):
        np.testing.assert_array_equal(seen(tmp_path, content)[0], expected)


# Fractions, and integers whose range nobody tells


@pytest.mark.parametrize("values, range_", [
    (np.array([0.0, 0.2, 1.0]), (0, 1)), (np.array([0.0, 51.0, 255.0]), (0, 255)),
    (np.array([0.0, 500.0, 65535.0]), (0, 65535)), (np.array([-2.0, 0.0, 3.0]), (-2, 3)),
])
def test_of_fractions_the_range_is_a_guess(tmp_path, values, range_):
    content = tiff(values.astype(np.float32).reshape(1, -1, 1))
    extent = assert_seen(tmp_path, content, level(values, *range_)[None, :, None])
    assert extent == Extent(values.min(), values.max(), *range_, known=False)
    assert extent.doubt == (f"the file does not tell which values are black and white, "
                            f"{range_[0]}..{range_[1]} is a guess")
    extent = assert_seen(tmp_path, content, level(values, -1, 4)[None, :, None],
                         Reading(value_range=(-1.0, 4.0)))
    assert extent.known


def test_what_is_no_number_is_0(tmp_path):
    values = np.array([[[np.nan], [np.inf], [0.0], [0.8]]], np.float32)
    extent = assert_seen(tmp_path, tiff(values), [[[0], [0], [0], [204]]])
    assert (extent.lowest, extent.highest) == (0, pytest.approx(0.8))


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint32])
def test_integers_without_a_range(tmp_path, dtype):
    values = np.array([[[0], [1000], [30_000]]]).astype(dtype)
    extent = assert_seen(tmp_path, tiff(values), level(values))
    assert not extent.known
    assert_seen(tmp_path, tiff(values), level(values, 0, 2000), Reading(value_range=(0, 2000)))


# Opacity


def over_white(colours, share):
    return np.rint(level(colours) * share + 255 * (1 - share)).astype(int)


def test_opacity_of_16_bits(tmp_path):
    share = FOUR[..., 3:] / 65535
    assert_seen(tmp_path, png16(FOUR), over_white(FOUR[..., :3], share))
    assert_seen(tmp_path, png16(FOUR[..., [0, 3]]), over_white(FOUR[..., :1], share))
    assert_seen(tmp_path, tiff(FOUR, 2, extra=(2,)), over_white(FOUR[..., :3], share))
    multiplied = np.minimum(FOUR, FOUR[..., 3:])
    expected = np.rint(np.minimum(level(multiplied[..., :3]) + 255 * (1 - share), 255)).astype(int)
    assert_seen(tmp_path, tiff(multiplied, 2, extra=(1,)), expected)


def test_the_transparent_colour_of_16_bits(tmp_path):
    values = np.array([[[300], [301], [44]]], np.uint16)  # 300 is 44 in its lower byte
    content = png16(values, chunk(b"tRNS", (300).to_bytes(2, "big")))
    assert_seen(tmp_path, content, [[[255], [1], [0]]])
    values = np.array([[[300, 5, 70], [300, 5, 71], [44, 5, 70]]], np.uint16) * 100
    key = b"".join(int(v).to_bytes(2, "big") for v in values[0, 0])
    expected = level(values)
    expected[0, 0] = 255
    assert_seen(tmp_path, png16(values, chunk(b"tRNS", key)), expected)
    # Bands that are named are shown as they are.
    assert_seen(tmp_path, png16(values, chunk(b"tRNS", key)), level(values),
                Reading(bands=(1, 2, 3)))


@pytest.mark.parametrize("extra", [(), (0,), (7,)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_fourth_band_that_is_no_opacity(tmp_path, dtype, extra):
    if extra == (7,):
        pytest.importorskip("tifffile")
    values = FOUR if dtype == np.uint16 else (FOUR >> 8).astype(np.uint8)
    expected = level(values[..., :3], 0, np.iinfo(dtype).max)
    assert_seen(tmp_path, tiff(values, 2, extra), expected)


# Bands


@pytest.mark.parametrize("reading", [
    Reading(bands=(3, 2, 1)), Reading(bands=(2, 2, 3)), Reading((20, 120)),
    Reading((9, 99), (2, 1, 3)),
])
@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "tif", "ppm"])
def test_bands_and_ranges_are_of_8_bits_too(tmp_path, suffix, reading):
    pixels = (RGB >> 8).astype(np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, **{"lossless": True} if suffix == "webp" else {})
    found = np.asarray(read_image(path, reading)).astype(int)
    bands = [number - 1 for number in reading.bands or (1, 2, 3)]
    range_ = reading.value_range or (0, 255)
    np.testing.assert_array_equal(found, level(pixels[..., bands], *range_))


@pytest.mark.parametrize("mode, count", [("1", 1), ("L", 1), ("P", 3), ("LA", 2), ("RGBA", 4),
                                         ("CMYK", 3)])
def test_bands_of_other_modes(tmp_path, mode, count):
    image = Image.fromarray((FOUR >> 8).astype(np.uint8), "RGBA")
    image = image if mode == "RGBA" else image.convert("RGB").convert(mode)
    image.save(tmp_path / "a.tif")
    same = np.asarray(read_image(tmp_path / "a.tif", Reading(bands=(1, 1, 1))))
    assert (same == same[..., :1]).all() and same.std() > 10
    with pytest.raises(UserError, match=rf"a\.tif has {count} bands?, and no number {count + 1} "):
        read_image(tmp_path / "a.tif", Reading(bands=(1, 1, count + 1)))


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("rows, deflated", [(None, False), (5, False), (5, True)])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_twelve_bands(tmp_path, separate, rows, deflated, order, dtype):
    pytest.importorskip("tifffile")
    values = (TWELVE >> 8).astype(dtype) if dtype == np.uint8 else TWELVE.astype(dtype)
    content = tiff(values, order=order, separate=separate, rows=rows, deflated=deflated)
    reading = Reading((100, 40_000), (12, 4, 7))
    assert_seen(tmp_path, content, level(values[..., [11, 3, 6]], 100, 40_000), reading)


@pytest.mark.parametrize("orientation", STORED)
def test_twelve_bands_are_upright(tmp_path, orientation):
    pytest.importorskip("tifffile")
    stored = np.stack([STORED[orientation](TWELVE[..., k]) for k in range(12)], axis=-1)
    content = tiff(stored, orientation=orientation, rows=4)
    assert_seen(tmp_path, content, level(TWELVE[..., [3, 2, 1]]), Reading(bands=(4, 3, 2)))


def test_twelve_bands_that_nobody_names(tmp_path, capfd):
    (tmp_path / "a.tif").write_bytes(tiff(TWELVE))
    for read in (read_image, image_size):
        with pytest.raises(UserError, match=(
            r"a\.tif has 12 bands and does not say which are red, green and blue: name three, "
            r"data.bands=\[4,3,2\] or, of infer.py, --bands 4 3 2$"
        )):
            read(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif has 12 bands, and no number 13 as data.bands"):
        read_image(tmp_path / "a.tif", Reading(bands=(1, 2, 13)))
    assert capfd.readouterr() == ("", "")
    # The first three of RGB with nine more are RGB.
    pytest.importorskip("tifffile")
    assert_seen(tmp_path, tiff(TWELVE, 2, extra=(0,) * 9), level(TWELVE[..., :3]))


def test_without_the_package_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *arguments):
        if name == "tifffile":
            raise ModuleNotFoundError("No module named 'tifffile'", name="tifffile")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", missing)
    (tmp_path / "a.tif").write_bytes(tiff(TWELVE))
    with pytest.raises(UserError) as caught:
        read_image(tmp_path / "a.tif", Reading(bands=(4, 3, 2)))
    assert str(caught.value) == (
        f"{tmp_path / 'a.tif'} has 12 bands of 16 bits in a form that Pillow does not read: "
        "pip install tifffile imagecodecs")


def test_a_compression_that_needs_a_package(tmp_path):
    pytest.importorskip("tifffile")
    if importlib.util.find_spec("imagecodecs"):
        pytest.skip("it is installed")
    content = tiff(TWELVE).replace(bytes((3, 1, 3, 0, 1, 0, 0, 0, 1, 0)),
                                   bytes((3, 1, 3, 0, 1, 0, 0, 0, 5, 0)))  # LZW
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(UserError, match=(
        r"a\.tif is compressed or packed in a form that needs a package: "
        r"pip install tifffile imagecodecs$"
    )):
        read_image(tmp_path / "a.tif", Reading(bands=(1, 2, 3)))


def test_files_of_tifffile_in_tiles(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    reading = Reading(bands=(4, 3, 12))
    for planar in ("contig", "separate"):
        values = TWELVE if planar == "contig" else np.moveaxis(TWELVE, -1, 0)
        for kind in ({}, {"tile": (16, 16)}, {"tile": (16, 16), "compression": "zlib"},
                     {"bigtiff": True}):
            tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack",
                             planarconfig=planar, **kind)
            found = np.asarray(read_image(tmp_path / "a.tif", reading))
            np.testing.assert_array_equal(found, level(TWELVE[..., [3, 2, 11]]))
    tifffile.imwrite(tmp_path / "b.tif", RGB, photometric="rgb", planarconfig="contig")
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif"), level(RGB))
    tifffile.imwrite(tmp_path / "b.tif", np.moveaxis(RGB, -1, 0), photometric="rgb",
                     planarconfig="separate")
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif"), level(RGB))


@pytest.mark.filterwarnings("ignore")
def test_damaged_tiff_files_of_many_bands(tmp_path):
    pytest.importorskip("tifffile")
    content, refused = tiff(TWELVE[:, :, :5], deflated=True, rows=4), 0
    rng, path = np.random.default_rng(1), tmp_path / "a.tif"
    for _ in range(150):
        damaged = bytearray(content)
        for at in rng.integers(0, len(content), rng.integers(1, 5)):
            near = len(content) - 1 - at % 400 if rng.integers(2) else at  # where the tags are
            damaged[near] = rng.integers(256)
        path.write_bytes(bytes(damaged[: rng.integers(8, len(content))] if rng.random() < 0.2
                               else damaged))
        try:
            size = image_size(path, Reading(bands=(1, 2, 5)))
            assert read_image(path, Reading(bands=(1, 2, 5))).size == size
        except UserError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            refused += 1
    assert 20 < refused < 150


# Masks


def test_masks_are_read_as_they_are(tmp_path):
    mask = (GREY % 3)
    for content in (png16(mask), tiff(mask), pnm(mask, 65535)):
        (tmp_path / "m.png").write_bytes(content)
        np.testing.assert_array_equal(read_mask(tmp_path / "m.png", 2), mask[..., 0])


# Memory


PEAK = """
import sys
from cosa.core.memory import PEAK_RESIDENT, resident
from cosa.data.images import read_image
from cosa.data.reading import Reading
before = resident(PEAK_RESIDENT)
image = read_image(sys.argv[1], Reading((0, 5000), (3, 2, 1)))
print((resident(PEAK_RESIDENT) - before) / (image.width * image.height))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells the peak")
@pytest.mark.parametrize("kind, bands, most", [("png", 3, 17), ("tif", 12, 18)])
def test_memory_does_not_grow_with_the_steps(tmp_path, kind, bands, most):
    values = np.full((2000, 6000 if kind == "png" else 2000, bands), 1000, np.uint16)
    if kind == "tif":
        pytest.importorskip("tifffile")
    path = tmp_path / f"a.{kind}"
    path.write_bytes(png16(values) if kind == "png" else tiff(values))
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], cwd=ROOT,
                          capture_output=True, text=True, check=True)
    # Four bytes a pixel of the result, of a PNG file eight of its two halves, and a strip's steps;
    # the values themselves would be 24 bytes of twelve bands.
    assert 4 < float(done.stdout) < most


# The range of a training set


def folder(tmp_path, contents):
    (tmp_path / "images").mkdir()
    rows = ["image,labels"]
    for number, content in enumerate(contents):
        (tmp_path / f"images/{number}.png").write_bytes(content)
        rows.append(f"{number},{'cat' if number % 2 else 'dog'}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    return {"name": "folder", "root": str(tmp_path), "images": "images", "labels": "labels.csv"}


def section(tree):
    return from_dict({"data": tree}).data


def test_the_range_of_a_training_set(tmp_path, capfd):
    """Of 1000 values 0..999 in each image, the percentiles are 5 and 994 by hand."""
    values = np.arange(1000, dtype=np.uint16).reshape(25, 40, 1)
    tree = folder(tmp_path, [png16(np.roll(values, k)) for k in range(4)]) | {"value_range": "auto"}
    training = build_dataset(section(tree), "train")
    assert training.reading == Reading((5.0, 994.0))
    assert resolved(section(tree), training).value_range == (5.0, 994.0)
    assert build_dataset(section(tree), "val").reading == training.reading
    assert "5 becomes black and 994 white, percentiles 0.5 and 99.5 of 4" in capfd.readouterr().err
    np.testing.assert_array_equal(training.image(0), np.broadcast_to(
        level(values, 5, 994), (25, 40, 3)))
    assert training.open_image(0).decode().extent == Extent(0, 999, 5, 994, above=0.005)
    numbers = section(tree | {"value_range": [10, 20], "bands": [1, 1, 1]})
    assert build_dataset(numbers, "train").reading == Reading((10.0, 20.0), (1, 1, 1))
    assert resolved(numbers, training) is numbers


def test_large_images_are_sampled_alike_everywhere(tmp_path):
    values = np.arange(400 * 500, dtype=np.uint32).reshape(400, 500, 1) // 4
    (tmp_path / "a.png").write_bytes(png16(values.astype(np.uint16)))
    found = LazyFile(tmp_path / "a.png").sample(5000)
    np.testing.assert_array_equal(found, values[::6, ::6].ravel())


def test_ranges_that_cannot_be_found(tmp_path):
    (tmp_path / "a.png").write_bytes(png16(GREY))
    Image.fromarray((RGB >> 8).astype(np.uint8)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(png16(np.full((5, 5, 1), 7, np.uint16)))

    def of(*names):
        paths = [tmp_path / name for name in names]
        return measured(FileDataset(("x",), names, np.ones((len(names), 1)), paths), None)

    with pytest.raises(UserError, match=(
        r"files of one depth: \S+a.png holds 0..65535, \S+b.png 0..255; save them alike"
    )):
        of("a.png", "b.png")
    with pytest.raises(UserError, match="the training images hold a single value"):
        of("c.png", "c.png")
    almost = np.full((100, 100, 1), 7, np.uint16)
    almost[0, 0] = 9000
    (tmp_path / "c.png").write_bytes(png16(almost))
    assert of("c.png") == (7.0, 9000.0)


def test_a_training_set_that_comes_out_black_is_told(tmp_path):
    tree = folder(tmp_path, [png16(GREY >> 4)] * 4)
    report = examine(*(build_dataset(section(tree), split) for split in ("train", "val")))
    (told,) = [f.sentence for f in report.findings if "training" in f.sentence
               and f.severity == "warning" and "misread" in f.sentence]
    assert told == (
        f"4 of 4 training images seem to be misread, such as 0: its values, {GREY.min() >> 4}.."
        f"{GREY.max() >> 4}, use a small part of 0..65535; if it should be another range, set "
        "data.value_range=auto, or to [low, high]")
    assert not any("nearly black" in f.sentence for f in report.findings)
    tree["value_range"] = [0, 4095]
    report = examine(*(build_dataset(section(tree), split) for split in ("train", "val")))
    assert not any("misread" in f.sentence for f in report.findings)


@pytest.mark.parametrize("key, value", [
    ("value_range", "full"), ("value_range", [1]), ("value_range", [4, 4]), ("value_range", [5, 4]),
    ("value_range", [0, 1e39]), ("value_range", [float("nan"), 1]), ("bands", [1, 2]),
    ("bands", [0, 1, 2]), ("bands", [1, 2, 10_001]), ("bands", "auto"),
])
def test_impossible_options(key, value):
    with pytest.raises(UserError, match=f"data.{key}"):
        section({"name": "folder", key: value})
    with pytest.raises(UserError, match="is for voc, coco and folder"):
        section({"name": "scenes", "bands": [1, 2, 3]})


def test_most_values_above_the_range():
    told = "most of its values, 0..4000, are above 0..255"
    assert [Extent(0, 4000, 0, 255, above=share).doubt for share in (0.9, 0.4)] == [told, ""]
