"""TIFF files that are read a few rows at a time: the pixels are those of the whole file."""

import sys

import numpy as np
import pytest
from PIL import Image

from cosa.core.errors import UserError
from cosa.data import layout, raster
from cosa.data.images import read_image
from cosa.data.raster import Ground, Raster
from cosa.data.reading import BY_DEPTH, Reading
from tests.helpers.deep_files import tiff
from tests.helpers.rasters import PLACE, write_raster

rasterio = pytest.importorskip("rasterio")

H, W = 37, 52


def noise(bands, kind=np.uint8):
    values = np.random.default_rng(bands).integers(0, np.iinfo(kind).max, (H, W, bands))
    return values.astype(kind)


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """Many parts of a file, though it is small."""
    monkeypatch.setattr(raster, "AT_ONCE", 5 * W)
    monkeypatch.setattr(layout, "STRIP", 3 * W)


def same(path, reading=BY_DEPTH):
    image = Raster(path, reading)
    parts = list(image.strips())
    image.close()
    assert len(parts) > 5
    assert np.array_equal(np.concatenate(parts), np.array(read_image(path, reading)))
    return image


FRACTIONS = np.random.default_rng(0).normal(0, 1, (H, W, 1)).astype(np.float32)
FRACTIONS[3, 4] = np.nan
RANGE, BANDS = Reading((20, 200)), Reading(bands=(3, 1, 2))
FILES = {
    "grey": (noise(1), {}), "white is zero": (noise(1), {"photometric": 0}),
    "16 bits": (noise(1, np.uint16), {"photometric": 0, "order": ">"}),
    "12 bits": (noise(1, np.uint16) // 16, {"bits": 12}),
    "rgb": (noise(3), {"photometric": 2}), "three bands": (noise(3), {}),
    "rgb of 16": (noise(3, np.uint16), {"photometric": 2}),
    "bands apart": (noise(3), {"photometric": 2, "separate": True}),
    "no opacity": (noise(4), {"photometric": 2, "extra": (0,)}),
    "multiplied": (noise(4), {"photometric": 2, "extra": (1,)}),
    "opacity": (noise(4), {"photometric": 2, "extra": (2,)}),
    "grey and opacity": (noise(2), {"extra": (2,)}),
    "opacity of 16": (noise(4, np.uint16), {"photometric": 2, "extra": (2,)}),
    "fractions": (FRACTIONS, {}), "a sign": ((1000 * np.nan_to_num(FRACTIONS)).astype("i2"), {}),
}


@pytest.mark.parametrize("reading", [BY_DEPTH, RANGE, Reading(bands=(1, 1, 1))],
                         ids=["default", "range", "bands"])
@pytest.mark.parametrize("name", FILES)
def test_rows_are_bit_by_bit_those_of_the_whole_file(tmp_path, name, reading):
    values, options = FILES[name]
    if reading.bands and (values.shape[2] > 3 or name == "grey and opacity"):
        pytest.importorskip("tifffile")
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(values, **options))
    image = same(path, reading)
    if values.dtype != np.uint8:
        assert image.extent.known == (values.dtype == np.uint16 or reading is RANGE)


def test_bands_by_their_numbers(tmp_path):
    pytest.importorskip("tifffile")
    path = write_raster(tmp_path / "a.tif", noise(7, np.uint16), photometric="MINISBLACK")
    same(path, BANDS)
    with pytest.raises(UserError, match=r"a\.tif has 7 bands and does not say which"):
        Raster(path)


@pytest.mark.parametrize("mode", ["1", "P", "L", "RGB", "RGBA", "LA"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "packbits"])
def test_what_pillow_writes(tmp_path, mode, compression):
    image = Image.fromarray(noise(3))
    image = image.quantize(37) if mode == "P" else image.convert(mode)
    image.save(tmp_path / "a.tif", compression=compression)
    for reading in (BY_DEPTH, RANGE):
        same(tmp_path / "a.tif", reading)


@pytest.mark.parametrize("options", [
    {"tiled": True, "blockxsize": 16, "blockysize": 32, "compress": "DEFLATE", "predictor": 2},
    {"BIGTIFF": "YES"}, {"compress": "LZW", "interleave": "band"}, {"nodata": 7},
    {"compress": "JPEG", "photometric": "RGB"},
], ids=str)
def test_what_programs_for_maps_write(tmp_path, options):
    same(write_raster(tmp_path / "a.tif", noise(3), **options))


@pytest.mark.parametrize("bits", [2, 4])
def test_fewer_than_eight_bits(tmp_path, bits):
    same(write_raster(tmp_path / "a.tif", noise(1) % 2**bits, NBITS=bits))


def test_what_cannot_be_read_by_rows_is_told(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"

    def refused():
        with pytest.raises(UserError) as caught:
            Raster(path)
        message = str(caught.value)
        assert message.startswith(f"{path} ") and "\n" not in message
        return message

    assert "does not exist; check the path" in refused()
    Image.fromarray(noise(3)).save(path, format="PNG")
    assert "no TIFF file" in refused() and "gdal_translate -co TILED=YES" in refused()
    Image.fromarray(noise(3)).convert("CMYK").save(path)
    assert "is neither grey nor RGB" in refused()
    path.write_bytes(tiff(noise(3), 2, orientation=6))
    assert "is not stored upright" in refused()
    path.write_bytes(tiff(noise(3), 2, deflated=True))
    monkeypatch.setattr(raster, "MAX_BLOCK", 3 * H * W - 1)
    assert f"is stored in parts of {H}x{W} pixels, too large" in refused()
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert "needs a package that reads it in parts: pip install rasterio" in refused()


def test_damage_is_told_when_it_is_met(tmp_path):
    path = write_raster(tmp_path / "a.tif", noise(3), compress="DEFLATE", blockysize=4)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 400] = bytes(400)
    path.write_bytes(content)
    image = Raster(path)
    with pytest.raises(UserError, match=r"a\.tif cannot be read as an image: "):
        list(image.strips())
    image.close()


def test_where_an_image_lies(tmp_path):
    path = write_raster(tmp_path / "a.tif", noise(1), **PLACE)
    ground = Ground(path)
    assert ground.place["crs"].to_epsg() == 32632 and not ground.gaps
    assert tuple(ground.place["transform"])[:6] == PLACE["transform"]
    ground.close()
    points = [rasterio.control.GroundControlPoint(row, col, x, y)
              for row, col, x, y in ((0, 0, 9, 48), (0, 9, 9.1, 48), (9, 0, 9, 47.9))]
    ground = Ground(write_raster(tmp_path / "b.tif", noise(1), gcps=points, crs="EPSG:4326"))
    assert len(ground.place["gcps"]) == 3 and ground.place["crs"].to_epsg() == 4326
    ground.close()
    Image.new("L", (3, 3)).save(tmp_path / "c.png")
    for path in (write_raster(tmp_path / "c.tif", noise(1)), tmp_path / "c.png"):
        ground = Ground(path)
        assert not ground.place and not ground.gaps
        ground.close()


def test_pixels_without_data(tmp_path):
    values = noise(3)
    values[5:20, 10:] = 7
    ground = Ground(write_raster(tmp_path / "a.tif", values, nodata=7))
    assert ground.gaps
    valid = np.concatenate(list(ground.valid()))
    ground.close()
    assert np.array_equal(valid, (values != 7).any(-1))
    seen = noise(4)
    seen[..., 3] = 255 * (seen[..., 3] > 100)
    (tmp_path / "b.tif").write_bytes(tiff(seen, 2, extra=(2,)))
    ground = Ground(tmp_path / "b.tif")
    assert np.array_equal(np.concatenate(list(ground.valid())), seen[..., 3] > 0)
    ground.close()


def test_a_turned_file_that_lies_somewhere_is_told(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(noise(3), 2, orientation=6))
    Ground(path).close()
    path.write_bytes(tiff(noise(4), 2, extra=(2,), orientation=6))
    with pytest.raises(UserError, match=r"a\.tif has a georeference or pixels without data, and"):
        Ground(path)
